"""The whole system on a config, for benchmarks: every iteration's metrics and batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_system(tree: dict[str, Any], run_dir: Path, report: Callable[[int, Any, Any], None]) -> tuple[int, int]:
    """Train with the config; returns the policy's parameters, and a learner rank's peak memory in bytes."""
    from rlhf_dist.cluster.placement import lay_out
    from rlhf_dist.cluster.session import cores_per_gpu, has_gpus, session
    from rlhf_dist.config import RLConfig
    from rlhf_dist.controller import train
    from rlhf_dist.data.prompts import PromptSampler
    from rlhf_dist.stages.places import placed
    from rlhf_dist.stages.rl import memory_of, prepare, probing_of
    from rlhf_dist.stages.wiring import engines, wired

    config = RLConfig.model_validate(tree)
    prepared = prepare(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    cpus, gpus = lay_out(config, gpus=has_gpus()).totals()
    with session(config.cluster, cpus=cpus, gpus=gpus, namespace="benchmark"):
        layout = lay_out(config, gpus=has_gpus(), cores=cores_per_gpu())
        with (
            placed(layout, run_dir, config.timeouts) as where,
            engines(config, where, prepared.eos_token_ids) as rollouts,
            wired(config, where, rollouts, prepared.begin, memory_of(config)) as parts,
        ):
            probing = probing_of(prepared, config)
            parts.learner.publish(parts.store, 0, probe_tokens=probing.tokens)
            prompts = PromptSampler(
                prepared.prompts,
                batch=config.rl.prompts_per_iteration,
                samples=config.rollout.samples_per_prompt,
                seed=0,
            )

            def told(iteration: int, metrics: Any, batch: Any, failures: Any) -> None:
                parts.memory.keep(parts.learner, prepared.state.copy())
                report(iteration, metrics, batch)

            train(parts, prompts, config, probing=probing, report=told, state=prepared.state)
            return parts.learner.num_parameters, parts.learner.peak_memory()
