"""The PPO stage: check everything, wire the system together, train, judge, and leave the run folder behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.placement import ActorPlan, ModelSize, model_size, place, totals
from rlhf_dist.cluster.session import session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import PPOConfig
from rlhf_dist.controller import Parts, train
from rlhf_dist.data.prompts import PromptSampler, read_prompts
from rlhf_dist.errors import ModelError
from rlhf_dist.evaluation.judge import answer, compare, load_judge
from rlhf_dist.learner.group import LearnerGroup, start_group
from rlhf_dist.learner.rank import ModelSpec
from rlhf_dist.models import check_same_tokenizer, eos_token_ids, load_tokenizer, read_config
from rlhf_dist.records import Prompt, Sampling
from rlhf_dist.rollout.worker import EngineSpec, RolloutWorker
from rlhf_dist.scoring.worker import ReferenceScorer, RewardScorer, ScoringWorker
from rlhf_dist.store.actor import Store
from rlhf_dist.telemetry.run_folder import RunFolder

PROBE_TOKENS = 64


@dataclass(frozen=True)
class Prepared:
    """Everything that could be checked and read before a process is started."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    plans: list[ActorPlan]
    sizes: dict[str, ModelSize]
    gpus: bool


def prepare(config: PPOConfig) -> Prepared:
    """Read configs, tokenizers and prompts, and check that they fit each other.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    models = model_paths(config)
    check_same_tokenizer(models["policy"], {role: path for role, path in models.items() if role != "policy"})
    sizes = {}
    for role, path in models.items():
        read = read_config(path)
        _check_positions(role, path, read, config.max_sequence)
        sizes[role] = model_size(read, kind="value" if role in ("reward", "critic") else "policy")
    tokenizer = load_tokenizer(config.policy)
    settings = config.prompts

    def prompts_of(path: str) -> list[Prompt]:
        return read_prompts(
            path, tokenizer, max_tokens=settings.max_tokens, column=settings.column, split=settings.split
        )

    prompts = prompts_of(settings.path)
    PromptSampler(prompts, batch=config.ppo.prompts_per_iteration, samples=1, seed=config.seed)
    load_judge(config.gold_judge)
    gpus = _cluster_has_gpus()
    return Prepared(
        prompts=prompts,
        held_out=prompts_of(settings.held_out)[: settings.held_out_limit] if settings.held_out else [],
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(config.policy),
        plans=place(config, sizes, gpus=gpus),
        sizes=sizes,
        gpus=gpus,
    )


def model_paths(config: PPOConfig) -> dict[str, str]:
    """Role to folder, with the defaults filled in."""
    return {
        "policy": config.policy,
        "reference": config.reference or config.policy,
        "reward": config.reward,
        "critic": config.critic or config.reward,
    }


def run(config: PPOConfig, folder: RunFolder) -> None:
    """Train, and leave the run folder complete."""
    prepared = prepare(config)
    cpus, gpus = totals(prepared.plans)
    with session(config.cluster, cpus=cpus, gpus=gpus), wired(config, prepared) as parts:
        probe = probe_sequence(prepared)
        parts.learner.publish(parts.store, 0, probe_tokens=probe)
        before = answer(parts, prepared.held_out, timeout_s=config.timeouts.batch)
        prompts = PromptSampler(
            prepared.prompts,
            batch=config.ppo.prompts_per_iteration,
            samples=config.rollout.samples_per_prompt,
            seed=config.seed,
        )

        def report(iteration: int, metrics: Mapping[str, float], batch: Any) -> None:
            folder.record(iteration, metrics)
            if config.experience.keep:
                folder.keep(iteration, batch)
            if config.checkpoint_every and (iteration + 1) % config.checkpoint_every == 0:
                save_policy(parts.learner, prepared.tokenizer, folder.checkpoint(iteration + 1))

        train(parts, prompts, config, probe_tokens=probe, report=report)
        after = answer(parts, prepared.held_out, timeout_s=config.timeouts.batch)
        save_policy(parts.learner, prepared.tokenizer, folder.path / "policy")
        parts.watch.forget()
    verdict = compare(prepared.held_out, before, after, prepared.tokenizer, load_judge(config.gold_judge))
    folder.finish(config, verdict, parameters=prepared.sizes["policy"].parameters)


@contextmanager
def wired(config: PPOConfig, prepared: Prepared) -> Iterator[Parts]:
    """Start every actor, connect them, and begin the workers' loops. The only place where handles are passed."""
    import ray

    watch = Watch()
    share = config.cluster.gpu_share if prepared.gpus else 0.0
    store = ray.remote(num_cpus=0)(Store).remote(
        batch_rows=config.batch_samples,
        max_staleness=config.experience.max_staleness,
        capacity_rows=config.experience.capacity_rows,
    )
    rollouts = _start_rollouts(config, prepared, share)
    scorers = _start_scorers(config, share)
    workers = {**rollouts, **scorers}
    starting = {name: worker.start.remote() for name, worker in workers.items()}
    learner = start_group(
        config.learner,
        model_specs(config),
        hidden=prepared.sizes["policy"].hidden,
        gpu_share=share,
        seed=config.seed,
        watch=watch,
        timeouts=config.timeouts,
    )
    watch.wait(starting, timeout_s=config.timeouts.start, doing="starting and loading its model")
    learner.plan_weights(bucket_bytes=config.weights.bucket_mib * 2**20, wire_dtype=config.wire_dtype)
    lease = -(-config.batch_samples // config.rollout.workers)
    for name, worker in rollouts.items():
        watch.add_loop(name, worker.run.remote(store, lease))
    for name, worker in scorers.items():
        watch.add_loop(name, worker.run.remote(store))
    try:
        yield Parts(store, rollouts, learner, watch)
    finally:
        watch.forget()
        for worker in [*workers.values(), *learner.ranks, store]:
            ray.kill(worker)


def _start_rollouts(config: PPOConfig, prepared: Prepared, gpu_share: float) -> dict[str, Any]:
    import ray

    rollout = config.rollout
    sampling = Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=rollout.stop,
        eos_token_ids=prepared.eos_token_ids,
    )
    options: dict[str, Any] = {
        "enforce_eager": not rollout.compile,
        "enable_prefix_caching": rollout.prefix_caching,
        "seed": config.seed,
    }
    if gpu_share:
        options["gpu_memory_utilization"] = rollout.gpu_memory_fraction
    else:
        options["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
    spec = EngineSpec(
        kind=rollout.engine,
        model=config.policy,
        dtype=config.wire_dtype,
        max_sequence=config.max_sequence,
        max_concurrent=rollout.max_concurrent,
        tensor_parallel=rollout.tensor_parallel,
        threads=rollout.threads,
        options=options,
    )
    kind = ray.remote(RolloutWorker).options(
        num_cpus=1,
        num_gpus=gpu_share * rollout.tensor_parallel,
        max_concurrency=2,
        runtime_env={"env_vars": rollout_environment(config, on_gpu=gpu_share > 0)},
    )
    limits = {"probe_tolerance": config.probe_tolerance, "timeout_s": config.timeouts.publish}
    names = [f"rollout-{number}" for number in range(rollout.workers)]
    return {name: kind.remote(name, spec, sampling, seed=config.seed, **limits) for name in names}


def rollout_environment(config: PPOConfig, *, on_gpu: bool) -> dict[str, str]:
    """Variables of a rollout worker's process."""
    if config.rollout.engine == "transformers":
        return {"OMP_NUM_THREADS": str(config.rollout.threads)}
    from rlhf_dist.rollout.vllm_engine import ENVIRONMENT

    if on_gpu:
        return dict(ENVIRONMENT)
    return {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": str(config.rollout.threads),
        # Binding would pin the engines of several workers to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def _start_scorers(config: PPOConfig, gpu_share: float) -> dict[str, Any]:
    import ray

    scoring, models = config.scoring, model_paths(config)
    env = {} if gpu_share else {"OMP_NUM_THREADS": str(scoring.threads)}
    kind = ray.remote(num_cpus=1, num_gpus=gpu_share, runtime_env={"env_vars": env})(ScoringWorker)
    shared = {"bf16": config.learner.precision == "bf16", "batch_tokens": scoring.batch_tokens}
    reward = {"path": models["reward"], **shared}
    reference = {"path": models["reference"], "temperature": config.rollout.temperature, **shared}
    bounds = {"lease_tokens": scoring.batch_tokens, "threads": scoring.threads, "timeout_s": config.timeouts.call}
    made = {}
    for number in range(scoring.reward_workers):
        made[f"reward-{number}"] = kind.remote(f"reward-{number}", RewardScorer, reward, **bounds)
    for number in range(scoring.reference_workers):
        made[f"reference-{number}"] = kind.remote(f"reference-{number}", ReferenceScorer, reference, **bounds)
    return made


def model_specs(config: PPOConfig) -> dict[str, ModelSpec]:
    """What the learner trains."""
    steps = config.ppo.iterations * config.ppo.epochs * config.ppo.mini_batches
    head = config.learner.critic == "value_head"
    policy = ModelSpec(
        config.policy, "policy", config.learner.policy, steps, temperature=config.rollout.temperature, value_head=head
    )
    if head:
        return {"policy": policy}
    return {"policy": policy, "critic": ModelSpec(model_paths(config)["critic"], "value", config.learner.value, steps)}


def save_policy(learner: LearnerGroup, tokenizer: Any, folder: Path) -> None:
    """Write the policy with its tokenizer, as transformers and vLLM load it; the folder is complete or absent."""
    with complete_or_absent(folder) as aside:
        learner.save("policy", aside.absolute())
        tokenizer.save_pretrained(aside)


def probe_sequence(prepared: Prepared) -> list[int]:
    """The beginning of the first prompt, on which engines are compared with the learner."""
    tokens: Sequence[int] = prepared.prompts[0].tokens
    wanted = min(PROBE_TOKENS, max(len(tokens), 2))
    return [tokens[number % len(tokens)] for number in range(wanted)]


def _check_positions(role: str, path: str, read: Any, max_sequence: int) -> None:
    positions = getattr(read, "max_position_embeddings", None)
    if positions is not None and positions < max_sequence:
        raise ModelError(
            f"{role} {path} has {positions} positions; prompts.max_tokens + rollout.max_new_tokens is {max_sequence}. "
            "Lower one of them, or take a model with more positions"
        )


def _cluster_has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()
