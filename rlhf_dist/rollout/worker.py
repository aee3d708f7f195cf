"""A rollout worker: it pulls prompts and weights when it is ready for them, and streams finished samples to the store."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from rlhf_dist.cluster.watch import POLL_S, fetch
from rlhf_dist.errors import WeightError
from rlhf_dist.records import PromptTask, Sample, Sampling
from rlhf_dist.rollout.generator import Generator
from rlhf_dist.rollout.spec import EngineSpec
from rlhf_dist.store.agreement import agreement
from rlhf_dist.store.deltas import whole_tables
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.weights import Manifest
from rlhf_dist.telemetry import logs, tracing
from rlhf_dist.telemetry.ray_metrics import WorkerMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PullSettings:
    """How weights are taken."""

    probe_tolerance: float
    """Largest mean difference of the engine's and the learner's log-probs on the probe, in nats."""
    timeout_s: float
    """Granted to each call to the store."""


class RolloutWorker(Generator):
    """A Ray actor around one engine. `run` serves a store; other calls wait until the engine is idle."""

    def __init__(self, name: str, spec: EngineSpec, sampling: Sampling, *, seed: int, pulls: PullSettings) -> None:
        """Take the settings; the engine has no weights before the first pull."""
        super().__init__(name, spec, sampling, seed=seed)
        self._pulls, self._timeout_s = pulls, pulls.timeout_s
        self._store: Any = None
        """The one that is served now."""
        self._serves = threading.Event()
        self._retired = threading.Event()
        self._facts: dict[str, float] = defaultdict(float)
        """What was measured since the last report."""

    def run(self, store: Any) -> None:
        """Until the worker is retired: lease samples, have the newest weights, generate, hand over.

        A run that is wired anew calls it with its new store; what was done for the one before is dropped, weights too, since
        the same version number may now name others.

        Waits for: prompts that may start under the staleness rule. Unblocked by: a submission or a new version.
        """
        self._begin(store)
        asked = self._ask(store)
        while asked is not None and store is self._store:
            tasks = self._granted(asked)
            asked = self._alone(self._serve, store, tasks) if tasks else self._ask(store)

    def _begin(self, store: Any) -> None:
        self._store = store  # at once, so that what goes on for the one before ends
        self._alone(self._drop_all)
        self._serves.set()

    def _drop_all(self) -> None:
        self._engine.abort()
        self._engine.forget()
        self._facts.clear()

    def retire(self) -> None:
        """Finish what is leased, then let `run` return."""
        self._retired.set()

    def sleep(self) -> None:
        """Free the engine's device memory, once it is idle, for a learner that shares the device."""
        self._alone(self._engine.sleep)

    @cached_property
    def _metrics(self) -> WorkerMetrics:
        return WorkerMetrics(self.name)

    def generate(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers outside of training, once there is a store; see `Generator.generate`."""
        self._serves.wait(self._timeout_s)
        return super().generate(tasks)

    def _answers(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers outside of training, from the newest weights."""
        self._pull(self._store)
        found = super()._answers(tasks)
        self._facts.clear()
        return found

    def _serve(self, store: Any, tasks: Sequence[PromptTask]) -> Any:
        """Generate until nothing runs; when half of a grant is done, ask for more beside it. Returns what was asked last."""
        self._pull(store)
        began = time.perf_counter()
        logs.CONTEXT["iteration"] = tasks[0].iteration
        with tracing.span("generate", version=self._engine.version, iteration=tasks[0].iteration):
            asked, handed_over = self._generate(store, tasks)
            fetch(handed_over, timeout_s=self._timeout_s, doing="accepting samples")
        self._facts["gen_s"] += time.perf_counter() - began
        log.info("generated", extra={"samples": self._facts["samples"], "seconds": self._facts["gen_s"]})
        store.report.remote(self.name, dict(self._facts))
        self._facts.clear()
        return asked or self._ask(store)

    def _generate(self, store: Any, tasks: Sequence[PromptTask]) -> tuple[Any, list[Any]]:
        granted, asked = self._add(tasks), None
        handed_over = []
        with self._progress.working("generating"):
            while self._engine.running and store is self._store:
                if finished := self._engine.step():
                    handed_over.append(store.append.remote(self.name, rollout_batch(finished)))
                    self._count(finished)
                self._progress.step()
                if asked is None and self._engine.running <= granted // 2:
                    asked = self._ask(store)
                elif asked is not None and _is_ready(asked):
                    granted, asked = self._add(self._granted(asked)), None
        return asked, handed_over

    def _ask(self, store: Any) -> Any:
        """Ask for as many samples as the engine has room for; None once retired."""
        if self._retired.is_set():
            return None
        return store.next_prompts.remote(self.name, self._spec.max_concurrent - self._engine.running, POLL_S)

    def _granted(self, asked: Any) -> list[PromptTask]:
        tasks: list[PromptTask] = fetch(asked, timeout_s=POLL_S + self._timeout_s, doing="leasing prompts")
        return tasks

    def _count(self, samples: Sequence[Sample]) -> None:
        tokens = sum(len(sample.response_tokens) for sample in samples)
        self._facts["samples"] += len(samples)
        self._facts["tokens"] += tokens
        self._metrics.count(samples=len(samples), tokens=tokens)

    def _pull(self, store: Any) -> None:
        """Take the newest version, unless the engine has it."""
        ask = partial(fetch, timeout_s=self._timeout_s, doing="handing out weights")
        if ask(store.newest_version.remote()) == self._engine.version:
            return
        began = time.perf_counter()
        manifests: list[Manifest] = ask(store.newest_weights.remote(self._engine.version >= 0))
        newest = manifests[-1]
        with tracing.span("pull weights", version=newest.version), self._progress.working("pulling weights"):
            self._engine.wake()
            for each in manifests:
                tables = whole_tables(each, lambda refs: ask(list(refs)))
                self._engine.load_weights(tables, each.names, version=each.version, partial=each.partial)
            self._check(newest)
        self._facts["pull_s"] = time.perf_counter() - began
        logs.CONTEXT["version"] = newest.version
        self._metrics.pulled(newest.version)
        pulled = sum(each.num_bytes for each in manifests)
        log.info("pulled weights", extra={"seconds": self._facts["pull_s"], "bytes": pulled})

    def _check(self, manifest: Manifest) -> None:
        """Compare the engine with the learner where the version brings a probe."""
        if manifest.probe is not None:
            found = agreement(self._engine.probe(manifest.probe.tokens), manifest.probe.log_probs)
            self._facts.update(found.facts("probe"))
            if not found.within(self._pulls.probe_tolerance):
                raise WeightError(
                    f"weight version {manifest.version}: the engine's log-probs of the probe differ from the learner's by "
                    f"{found.diff:.3g} nats in the mean; expected at most {self._pulls.probe_tolerance:g} "
                    "(weights.probe_tolerance). The weights arrived whole, and the learner computes as transformers does, so the "
                    "engine computes this model otherwise: take rollout.engine transformers, or another family of models"
                )


def _is_ready(ref: Any) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])
