"""The PPO stage: check everything, start the system, train, judge, and leave the run folder behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.memory import model_size
from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.session import check_size, namespace_of, session
from rlhf_dist.config import PPOConfig
from rlhf_dist.controller import Parts, State, train
from rlhf_dist.data.prompts import PromptSampler, read_prompts
from rlhf_dist.errors import ModelError
from rlhf_dist.evaluation.judge import answer, compare, load_judge
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.models import check_same_tokenizer, eos_token_ids, load_tokenizer, read_config
from rlhf_dist.records import Prompt
from rlhf_dist.stages.resume import newest, save_checkpoint
from rlhf_dist.stages.wiring import Begin, Prepared, model_paths, model_specs, wired
from rlhf_dist.telemetry import logs
from rlhf_dist.telemetry.run_folder import RunFolder
from rlhf_dist.telemetry.tracing import Span, Trace
from rlhf_dist.telemetry.tracing import take as take_spans

PROBE_TOKENS = 64


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
    return Prepared(
        prompts=prompts,
        held_out=prompts_of(settings.held_out)[: settings.held_out_limit] if settings.held_out else [],
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(config.policy),
        sizes=sizes,
    )


def run(config: PPOConfig, folder: RunFolder, *, resume: bool = False) -> None:
    """Train, and leave the run folder complete.

    Args:
        config: the run's settings.
        folder: where it leaves its files.
        resume: go on from the folder's newest checkpoint.
    """
    prepared = prepare(config)
    state, begin = newest(config, folder.path) if resume else (State(0, config.ppo.kl_coef), Begin())
    local = lay_out(config, gpus=machine_has_gpus())
    cpus, gpus = local.totals()
    spare = config.rollout.workers.max - config.rollout.workers.min
    asked = cpus if config.cluster.address else cpus + spare
    with folder.told_of_failure(), session(config.cluster, cpus=asked, gpus=gpus, namespace=namespace_of(folder.path)):
        logs.to_file(str(folder.path.absolute() / "logs"), "controller")
        folder.rewind(state.iteration)
        folder.tell("starting")
        layout = lay_out(config, gpus=cluster_has_gpus())
        check_size(*layout.totals())
        with wired(config, prepared, layout, folder.path, begin) as parts:
            folder.listeners.append(parts.store.note.remote)
            folder.tell("evaluating")
            _train(parts, prepared, config, folder, state)
            folder.tell("evaluating")
            before = folder.answers_before()
            after = answer(parts.rollouts, prepared.held_out, timeout_s=config.timeouts.batch)
            save_policy(parts.learner, prepared.tokenizer, folder.path / "policy")
            parts.watch.forget()
            folder.listeners.clear()
    verdict = compare(prepared.held_out, before, after, prepared.tokenizer, load_judge(config.gold_judge))
    folder.finish(config, verdict, parameters=prepared.sizes["policy"].parameters)


def _train(parts: Parts, prepared: Prepared, config: PPOConfig, folder: RunFolder, state: State) -> None:
    """Publish the first version, answer the held-out prompts with it, and train, reporting every iteration."""
    probe = probe_sequence(prepared)
    parts.learner.publish(parts.store, state.iteration, probe_tokens=probe)
    if state.iteration == 0:
        folder.keep_answers_before(answer(parts.rollouts, prepared.held_out, timeout_s=config.timeouts.batch))
    prompts = PromptSampler(
        prepared.prompts,
        batch=config.ppo.prompts_per_iteration,
        samples=config.rollout.samples_per_prompt,
        seed=config.seed,
    )
    trace = Trace(folder.path / "trace.json", config.telemetry.trace_iterations)

    def report(iteration: int, metrics: Mapping[str, float], batch: Any) -> None:
        folder.record(iteration, metrics, fleet=parts.rollouts.states())
        if config.experience.keep:
            folder.keep(iteration, batch)
        if trace.wants(iteration):
            trace.add(spans_of(parts, timeout_s=config.timeouts.call), seconds=metrics["timing_s/step"])
        if config.checkpoint_every and (iteration + 1) % config.checkpoint_every == 0:
            models = [*model_specs(config, Begin())]
            save_checkpoint(parts.learner, prepared.tokenizer, folder.path, state, models)

    train(parts, prompts, config, probe_tokens=probe, report=report, state=state)


def spans_of(parts: Parts, *, timeout_s: float) -> dict[str, list[Span]]:
    """What every actor did since it was asked last, the controller included."""
    ranks = {f"learner-{number}": rank for number, rank in enumerate(parts.learner.ranks)}
    actors = {**parts.rollouts.ready, **parts.scorers, **ranks, "store": parts.store}
    calls = {name: actor.take_spans.remote() for name, actor in actors.items()}
    return {"controller": take_spans(), **parts.watch.wait(calls, timeout_s=timeout_s, doing="telling what they did")}


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


def machine_has_gpus() -> bool:
    """Whether this machine has GPUs."""
    import torch

    return torch.cuda.is_available()


def cluster_has_gpus() -> bool:
    """Whether the Ray cluster has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU"))
