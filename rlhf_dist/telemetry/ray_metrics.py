"""Metrics that Ray exports to Prometheus, beside its own and vLLM's. The whole list is `METRICS`; launch/README.md repeats it.

Prometheus shows them with the prefix `ray_`. Each is set in the process that owns the fact, and has the tag `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from rlhf_dist.cluster.session import NAMESPACE


class Described(NamedTuple):
    """One metric."""

    kind: Literal["gauge", "counter"]
    meaning: str
    tags: tuple[str, ...] = ()


METRICS: dict[str, Described] = {
    "rlhf_samples_per_second": Described("gauge", "samples trained on per second of the last iteration"),
    "rlhf_tokens_per_second": Described("gauge", "prompt and answer tokens per second of the last iteration"),
    "rlhf_phase_seconds": Described("gauge", "seconds of each phase of the last iteration", ("phase",)),
    "rlhf_iteration": Described("gauge", "iterations done"),
    "rlhf_reward_mean": Described("gauge", "mean score of the last iteration's answers"),
    "rlhf_kl": Described("gauge", "KL to the reference, nats per answer"),
    "rlhf_policy_kl": Described("gauge", "KL of the old to the new policy in the update, nats per token"),
    "rlhf_entropy": Described("gauge", "entropy, nats per token"),
    "rlhf_clip_fraction": Described("gauge", "share of tokens whose ratio was clipped"),
    "rlhf_response_length": Described("gauge", "tokens per answer"),
    "rlhf_staleness": Described("gauge", "mean versions that the trained samples were behind"),
    "rlhf_restarts": Described("gauge", "rollout workers lost and replaced since the start"),
    "rlhf_rollout_workers": Described("gauge", "rollout workers by state", ("state",)),
    "rlhf_weight_version": Described("gauge", "newest weight version published"),
    "rlhf_weight_bytes": Described("gauge", "bytes of one weight version"),
    "rlhf_queue_depth": Described("gauge", "samples that wait or are worked on, by where", ("stage",)),
    "rlhf_store_bytes": Described("gauge", "bytes of experience and weights that the store holds", ("what",)),
    "rlhf_worker_version": Described("gauge", "weight version in a rollout worker's engine", ("worker",)),
    "rlhf_generated_samples_total": Described("counter", "samples that a worker finished", ("worker",)),
    "rlhf_generated_tokens_total": Described("counter", "answer tokens that a worker finished", ("worker",)),
}
ITERATION = {
    "rlhf_samples_per_second": "perf/samples_per_second",
    "rlhf_tokens_per_second": "perf/throughput",
    "rlhf_reward_mean": "critic/score/mean",
    "rlhf_kl": "objective/kl",
    "rlhf_policy_kl": "actor/ppo_kl",
    "rlhf_entropy": "actor/entropy",
    "rlhf_clip_fraction": "actor/pg_clipfrac",
    "rlhf_response_length": "response_length/mean",
    "rlhf_staleness": "training/off_policy/trajectory_staleness/mean",
    "rlhf_restarts": "fleet/restarts",
    "rlhf_weight_version": "weights/version",
    "rlhf_weight_bytes": "weights/bytes",
}
"""Metric to the key of an iteration's metrics that it shows."""


def make(name: str) -> Any:
    """A metric of the list, tagged with the run's name.

    Raises:
        RuntimeError: this process is not connected to Ray, which would otherwise start a cluster unasked.
    """
    import ray
    from ray.util import metrics

    if not ray.is_initialized():
        raise RuntimeError("not connected to Ray")
    described = METRICS[name]
    kind = metrics.Gauge if described.kind == "gauge" else metrics.Counter
    made = kind(name, description=described.meaning, tag_keys=("run", *described.tags))
    made.set_default_tags({"run": ray.get_runtime_context().namespace.removeprefix(NAMESPACE)})
    return made


class RayMetricsTracker:
    """A tracker: what an iteration measured, as gauges of the controller's process."""

    def __init__(self) -> None:
        """Make the gauges."""
        self._gauges = {name: make(name) for name in (*ITERATION, "rlhf_iteration", "rlhf_phase_seconds")}
        self._workers = make("rlhf_rollout_workers")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show one iteration."""
        self._gauges["rlhf_iteration"].set(iteration + 1)
        for name, key in ITERATION.items():
            if key in metrics:
                self._gauges[name].set(metrics[key])
        for key, value in metrics.items():
            if key.startswith("timing_s/"):
                self._gauges["rlhf_phase_seconds"].set(value, tags={"phase": key.removeprefix("timing_s/")})
            if key.startswith("fleet/workers/"):
                self._workers.set(value, tags={"state": key.removeprefix("fleet/workers/")})

    def finish(self) -> None:
        """Nothing is left to write."""


class StoreMetrics:
    """What the store holds."""

    def __init__(self) -> None:
        """Make the gauges."""
        self._depth, self._bytes = make("rlhf_queue_depth"), make("rlhf_store_bytes")

    def show(self, status: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """Show counts of rows by stage, and bytes by what they are."""
        for stage, count in status.items():
            self._depth.set(count, tags={"stage": stage})
        for what, size in sizes.items():
            self._bytes.set(size, tags={"what": what})


class WorkerMetrics:
    """What a rollout worker has done."""

    def __init__(self, worker: str) -> None:
        """Make the metrics of one worker."""
        self._tags = {"worker": worker}
        self._samples, self._tokens = make("rlhf_generated_samples_total"), make("rlhf_generated_tokens_total")
        self._version = make("rlhf_worker_version")

    def count(self, *, samples: int, tokens: int) -> None:
        """Count finished samples and their answer tokens."""
        self._samples.inc(samples, tags=self._tags)
        if tokens:
            self._tokens.inc(tokens, tags=self._tags)

    def pulled(self, version: int) -> None:
        """Show the version in the engine."""
        self._version.set(version, tags=self._tags)
