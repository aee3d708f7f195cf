"""The training loop.

    prompts -> rollout workers -> store -> reward and reference workers -> learner -> weights -> rollout workers

Read it as the algorithm. The concurrency is in what it calls: rollout workers pull prompts and weights, scoring workers pull
finished rows, and the store says when a batch is whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import FiniteFloat

from rlhf_dist.algorithms.kl import AdaptiveKL
from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import PPOConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import WaitTimeout
from rlhf_dist.evaluation.bands import GOLD_MEAN, Left, left_band
from rlhf_dist.evaluation.metrics import batch_metrics, iteration_metrics
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.memory import Memory
from rlhf_dist.learner.ppo import Method
from rlhf_dist.records import Failure, RowKey
from rlhf_dist.rollout.elasticity import balance
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.reader import blocks_of, read_batch
from rlhf_dist.telemetry import logs
from rlhf_dist.telemetry.timing import Timer

Report = Callable[[int, Mapping[str, float], Any, Mapping[RowKey, Failure]], None]
"""Takes iteration, metrics, the batch (`store.schema.EXPERIENCE`), and which samples have no score, and why."""


@dataclass
class State:
    """Where a run is: what it needs, beside the models, to go on."""

    iteration: int
    """The next one."""
    kl_coef: FiniteFloat
    gold: list[FiniteFloat] = field(default_factory=list)
    """Mean gold score of every iteration so far, where one is watched."""
    rolled_back: int = 0
    """Roll-backs in a row up to now."""

    def copy(self) -> State:
        """The same, whatever becomes of this one."""
        return replace(self, gold=[*self.gold])


@dataclass(frozen=True)
class Parts:
    """The running system, wired by `stages.wiring`."""

    store: Any
    rollouts: Fleet
    scorers: Mapping[str, Fleet]
    """By the writer of the columns that they add."""
    learner: LearnerGroup
    watch: Watch
    lent: Callable[[], AbstractContextManager[None]]
    """Around an update: devices that engines share with the learner are the learner's."""
    memory: Memory[State]
    """The learner as it was after its last iterations."""


def train(
    parts: Parts,
    prompts: PromptSampler,
    config: PPOConfig,
    *,
    probe_tokens: Sequence[int],
    report: Report,
    state: State,
) -> str | None:
    """Run PPO: generate, score, update, publish, for every iteration; returns why it ended early, if `ppo.stop_on` says so.

    With `max_staleness` 0 the store starts no sample of an iteration before the version it will be trained on is published,
    so each iteration is strictly on-policy.

    Args:
        parts: the running system; the weight version of the first iteration is published already.
        prompts: the batches of prompts.
        config: the run's settings.
        probe_tokens: the sequence on which engines are compared with the learner.
        report: called after every iteration.
        state: where a run begins or goes on; moved along, so that `report` can save it.
    """
    method = Method(config.advantage.build(), config.surrogate.build())
    kl = AdaptiveKL(state.kl_coef, target=config.ppo.kl_target, horizon=config.ppo.kl_horizon)
    for iteration in range(state.iteration, config.ppo.iterations):
        logs.CONTEXT.update(iteration=iteration, version=iteration)
        timer = Timer()
        _tell(parts, parts.store.submit.remote(prompts.batch(iteration)), config, "queueing prompts")
        with timer.phase("experience"):
            rows = take(parts, iteration, config)
        with timer.phase("update"), parts.lent():
            stats = parts.learner.update(
                rows,
                method,
                config.ppo,
                kl_coef=kl.coefficient,
                ratio_is_one=config.ratio_is_one,
                seed=config.seed + iteration,
            )
        batch = read(parts, rows, timeout_s=config.timeouts.call)
        told = batch_metrics(batch)
        left = leave_or_undo(parts, config, state, {**stats, **told})
        with timer.phase("update_weights"):
            version = iteration + 1
            probe = probe_tokens if version % config.weights.probe_every == 0 else None
            num_bytes = parts.learner.publish(parts.store, version, probe_tokens=probe)
        failures = failed_rewards(parts, iteration, config)
        _tell(parts, parts.store.consume.remote(iteration), config, "freeing a batch")
        facts = {
            **worker_facts(parts, timeout_s=config.timeouts.call),
            **fleet_facts(parts),
            "weights/version": float(version),
            "weights/bytes": float(num_bytes),
            "actor/reward_kl_penalty_coeff": kl.coefficient,
            **({"reward/quarantined": float(len(failures))} if config.scoring.quarantine else {}),
            **({"actor/rolled_back": float(state.rolled_back > 0)} if config.ppo.stop_on.then == "roll_back" else {}),
        }
        metrics = iteration_metrics(stats, told, facts, timer.metrics())
        if "objective/kl" in stats:  # else nothing finite was found
            kl.update(stats["objective/kl"], samples=len(rows))
        state.iteration, state.kl_coef = version, kl.coefficient
        report(iteration, metrics, batch, failures)
        if left and left.stops:
            return left.reason
        for fleet in parts.scorers.values():
            fleet.forgive()
        balance(parts.rollouts, waited_s=timer.seconds["experience"], step_s=metrics["timing_s/step"])
    return None


def leave_or_undo(parts: Parts, config: PPOConfig, state: State, metrics: Mapping[str, float]) -> Left | None:
    """Which band the iteration left, if it did; undoes the updates that led there, if `ppo.stop_on.then` says so."""
    if GOLD_MEAN in metrics:
        state.gold.append(metrics[GOLD_MEAN])
    left = left_band(config.ppo.stop_on, metrics, state.gold, rolled_back=state.rolled_back)
    if left is None or not left.undo:
        state.rolled_back = 0
        return left
    state.rolled_back += 1
    parts.memory.back(parts.learner, left.undo)
    parts.watch.say(f"{left.reason}: the update is undone, roll-back {state.rolled_back} in a row")
    return left


def failed_rewards(parts: Parts, iteration: int, config: PPOConfig) -> Mapping[RowKey, Failure]:
    """Rows of an iteration that have no score, and why; they were not trained on."""
    if not config.scoring.quarantine:
        return {}
    ref, doing = parts.store.failures.remote(iteration), "telling which rewards failed"
    found: Mapping[RowKey, Failure] = parts.watch.one("store", ref, timeout_s=config.timeouts.call, doing=doing)
    return found


def take(parts: Parts, iteration: int, config: PPOConfig) -> list[RowView]:
    """Wait for the whole scored batch of an iteration.

    Raises:
        WaitTimeout: it is not whole in time; says how many rows are where.
    """
    timeout_s = config.timeouts.batch
    ref = parts.store.take.remote(iteration, timeout_s, config.advantage.fewest_samples)
    doing = f"collecting the batch of iteration {iteration}"
    rows: list[RowView] | None = parts.watch.one("store", ref, timeout_s=timeout_s + 10.0, doing=doing)
    if rows is None:
        status = parts.watch.one("store", parts.store.status.remote(), timeout_s=10.0, doing="telling its status")
        raise WaitTimeout(
            f"store: no whole batch of iteration {iteration} within {timeout_s:g} s; rows are: {status}; "
            f"rollout workers are: {parts.rollouts.states()}"
        )
    return rows


def read(parts: Parts, rows: Sequence[RowView], *, timeout_s: float) -> pa.RecordBatch:
    """A batch with all its columns (`store.schema.EXPERIENCE`), for metrics and for keeping."""
    refs = blocks_of(rows)
    blocks = parts.watch.several("store", refs, timeout_s=timeout_s, doing="handing out the batch")
    return read_batch(rows, dict(zip(refs, blocks, strict=True)))


def _tell(parts: Parts, ref: Any, config: PPOConfig, doing: str) -> None:
    parts.watch.one("store", ref, timeout_s=config.timeouts.call, doing=doing)


def worker_facts(parts: Parts, *, timeout_s: float) -> dict[str, float]:
    """Slowest rollout worker's seconds of generating and pulling, and the largest probe difference, if any compared."""
    ref = parts.store.take_facts.remote()
    told = parts.watch.one("store", ref, timeout_s=timeout_s, doing="handing out the workers' timings").values()
    slowest = {name: max((each.get(name, 0.0) for each in told), default=0.0) for name in ("gen_s", "pull_s")}
    compared = [each["probe_diff"] for each in told if "probe_diff" in each]
    return {
        "timing_s/gen": slowest["gen_s"],
        "timing_s/pull_weights": slowest["pull_s"],
        **({"weights/probe_diff": max(compared)} if compared else {}),
        "fleet/workers/serving": float(len(told)),
    }


def fleet_facts(parts: Parts) -> dict[str, float]:
    """How many rollout workers are in which state, and how many workers were lost and replaced since the start."""
    counts = Counter(parts.rollouts.states().values())
    states = {f"fleet/workers/{state}": float(counts[state]) for state in ("ready", "starting", "leaving")}
    lost = sum(fleet.restarts for fleet in (parts.rollouts, *parts.scorers.values()))
    return {**states, "fleet/restarts": float(lost)}
