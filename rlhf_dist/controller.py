"""The training loop.

    prompts -> rollout workers -> store -> reward and reference workers -> learner -> weights -> rollout workers

Read it as the algorithm. The concurrency is in what it calls: rollout workers pull prompts and weights, scoring workers pull
finished rows, and the store says when a batch is whole.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_dist.config import RLConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import WeightError
from rlhf_dist.evaluation.bands import GOLD_MEAN, Left, left_band
from rlhf_dist.evaluation.metrics import batch_metrics, iteration_metrics
from rlhf_dist.gathering import gather, read
from rlhf_dist.learner import mismatch
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.parts import Parts
from rlhf_dist.records import Failure, RowKey
from rlhf_dist.rollout.elasticity import balance
from rlhf_dist.steering import State, Steering
from rlhf_dist.store.agreement import longest_sample
from rlhf_dist.telemetry import logs
from rlhf_dist.telemetry.timing import Timer

log = logging.getLogger(__name__)

Report = Callable[[int, Mapping[str, float], Any, Mapping[RowKey, Failure]], None]
"""Takes iteration, metrics, the batch (`store.schema.EXPERIENCE`), and which samples have no score, and why."""


def train(
    parts: Parts,
    prompts: PromptSampler,
    config: RLConfig,
    *,
    probing: Probing,
    report: Report,
    state: State,
    values: Mapping[int, float] | None = None,
) -> str | None:
    """Generate, score, update, publish, for every iteration; returns why it ended early, if `rl.stop_on` says so.

    With `max_staleness` 0 the store starts no sample of an iteration before the version it will be trained on is published,
    so each iteration is strictly on-policy.

    Args:
        parts: the running system; the weight version of the first iteration is published already.
        prompts: the batches of prompts.
        config: the run's settings.
        probing: on what, and how closely, engines are compared with the learner.
        report: called after every iteration.
        state: where a run begins or goes on; moved along, so that `report` can save it.
        values: V* of each prompt by its id, where that is the baseline.
    """
    objective, steering = RLObjective.of(config), Steering(config.algorithm, state)
    doubted: set[str] = set()
    proven = config.learner.lora is None
    for iteration in range(state.iteration, config.rl.iterations):
        logs.CONTEXT.update(iteration=iteration, version=iteration)
        timer = Timer()
        with timer.phase("experience"):
            parts.turns.to_others()
            gathered = gather(parts, prompts, iteration, config)
        rows = gathered.rows
        now = Now(
            kl_coef=state.kl_coef,
            entropy_coef=state.entropy_coef,
            ratio_is_one=config.ratio_is_one,
            iteration=iteration,
            seed=config.seed + iteration,
            running_mean=steering.running_mean,
            given=gathered.given or {row.key.prompt_id: values[row.key.prompt_id] for row in rows if values},
            critic_only=iteration < config.algorithm.critic_warmup,
        )
        version = iteration + 1
        compares = version % config.weights.probe_every == 0 or not proven
        batch = read(parts, rows, timeout_s=config.timeouts.call)
        with timer.phase("update"):
            parts.turns.to_learner()
            probed = check_decoding(parts.learner, batch, iteration, config, probing) if compares else Probed()
            stats = parts.learner.update(rows, objective, now)
        warn_of(mismatch.doubts(stats), doubted, parts.watch.say)
        told = {**batch_metrics(batch), **gathered.facts}
        left = leave_or_undo(parts, config, state, {**stats, **told})
        with timer.phase("update_weights"):
            published = parts.learner.publish(parts.store, version, probe_tokens=probed.tokens)
            # New adapters change nothing, which any engine gets right: until they do, every version is compared.
            proven = proven or "weights/lora_kept" in published
            if config.algorithm.reference_every and version % config.algorithm.reference_every == 0:
                parts.move_reference(version)
        failures = failed_rewards(parts, iteration, config)
        _tell(parts, parts.store.consume.remote(iteration), config, "freeing a batch")
        facts = {
            **worker_facts(parts, timeout_s=config.timeouts.call),
            **fleet_facts(parts),
            "weights/version": float(version),
            **published,
            **probed.facts,
            "actor/reward_kl_penalty_coeff": now.kl_coef,
            **({"actor/entropy_coeff": now.entropy_coef} if config.algorithm.entropy_counts else {}),
            **({"reward/quarantined": float(len(failures))} if config.scoring.quarantine else {}),
            **({"actor/rolled_back": float(state.rolled_back > 0)} if config.rl.stop_on.then == "roll_back" else {}),
        }
        metrics = iteration_metrics(stats, told, facts, timer.metrics())
        steering.move(state, {**stats, **told}, samples=len(rows))
        state.iteration = version
        report(iteration, metrics, batch, failures)
        if left and left.stops:
            return left.reason
        for fleet in parts.scorers.values():
            fleet.forgive()
        balance(parts.rollouts, waited_s=timer.seconds["experience"], step_s=metrics["timing_s/step"])
    return None


@dataclass(frozen=True)
class Probing:
    """How engines are compared with the learner."""

    tokens: Sequence[int]
    """What they read where no sample is at hand."""
    tolerance: float
    """Largest mean distance of log-probs, in nats."""


@dataclass(frozen=True)
class Probed:
    """What was compared before an update, and what engines are to read after it."""

    tokens: Sequence[int] | None = None
    """None: no comparison."""
    facts: Mapping[str, float] = field(default_factory=dict)


def check_decoding(learner: Any, batch: Any, version: int, config: RLConfig, probing: Probing) -> Probed:
    """Compare what decoding said of the longest sample with what the learner says that it was sampled from.

    Raises:
        WeightError: the two are too far apart.
    """
    sample = longest_sample(batch, version)
    if sample is None:
        return Probed(probing.tokens)
    said = learner.probe(sample.tokens, temperature=config.rollout.temperature, version=version)
    found = sample.compared(said)
    if not found.within(probing.tolerance):
        raise WeightError(
            f"weight version {version}: the log-probs with which a sample of {len(sample.tokens)} tokens was decoded differ from "
            f"the learner's by {found.diff:.3g} nats in the mean; expected at most {probing.tolerance:g} "
            "(weights.probe_tolerance). The engine decodes otherwise than the learner reads: look at the dtype of its KV cache "
            "and at its attention, or take rollout.engine transformers"
        )
    room = config.max_sequence - 1  # an engine that reads also writes a token
    return Probed(sample.tokens[:room], {f"weights/{name}": value for name, value in found.facts("decode").items()})


def warn_of(doubts: Sequence[str], said: set[str], say: Callable[[str], None]) -> None:
    """Say why an update is not to be trusted: every time in the log, and of each metric once to people."""
    for doubt in doubts:
        log.warning("the update is not to be trusted: %s", doubt)
        name = doubt.split()[0]
        if name not in said:
            say(f"the update is not to be trusted: {doubt}. What sampled and what learns are too far apart")
        said.add(name)


def leave_or_undo(parts: Parts, config: RLConfig, state: State, metrics: Mapping[str, float]) -> Left | None:
    """Which band the iteration left, if it did; undoes the updates that led there, if `rl.stop_on.then` says so."""
    if GOLD_MEAN in metrics:
        state.gold.append(metrics[GOLD_MEAN])
    left = left_band(config.rl.stop_on, metrics, state.gold, rolled_back=state.rolled_back)
    if left is None or not left.undo:
        state.rolled_back = 0
        return left
    state.rolled_back += 1
    parts.memory.back(parts.learner, left.undo)
    parts.watch.say(f"{left.reason}: the update is undone, roll-back {state.rolled_back} in a row")
    return left


def failed_rewards(parts: Parts, iteration: int, config: RLConfig) -> Mapping[RowKey, Failure]:
    """Rows of an iteration that have no score, and why; they were not trained on."""
    if not config.scoring.quarantine:
        return {}
    ref, doing = parts.store.failures.remote(iteration), "telling which rewards failed"
    found: Mapping[RowKey, Failure] = parts.watch.one("store", ref, timeout_s=config.timeouts.call, doing=doing)
    return found


def _tell(parts: Parts, ref: Any, config: RLConfig, doing: str) -> None:
    parts.watch.one("store", ref, timeout_s=config.timeouts.call, doing=doing)


def worker_facts(parts: Parts, *, timeout_s: float) -> dict[str, float]:
    """Slowest rollout worker's seconds of generating and pulling, and the largest probe differences, if any compared."""
    ref = parts.store.take_facts.remote()
    told = parts.watch.one("store", ref, timeout_s=timeout_s, doing="handing out the workers' timings").values()
    slowest = {name: max((each.get(name, 0.0) for each in told), default=0.0) for name in ("gen_s", "pull_s")}
    compared = {name for each in told for name in each if name.startswith("probe_")}
    return {
        "timing_s/gen": slowest["gen_s"],
        "timing_s/pull_weights": slowest["pull_s"],
        **{f"weights/{name}": max(each[name] for each in told if name in each) for name in compared},
        "fleet/workers/serving": float(len(told)),
    }


def fleet_facts(parts: Parts) -> dict[str, float]:
    """How many rollout workers are in which state, and how many workers were lost and replaced since the start."""
    counts = Counter(parts.rollouts.states().values())
    states = {f"fleet/workers/{state}": float(counts[state]) for state in ("ready", "starting", "leaving")}
    lost = sum(fleet.restarts for fleet in (parts.rollouts, *parts.scorers.values()))
    return {**states, "fleet/restarts": float(lost)}
