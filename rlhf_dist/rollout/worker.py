"""A rollout worker: it pulls prompts and weights when it is ready for them, and streams finished samples to the store."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.cluster.one_thread import OneThread
from rlhf_dist.cluster.watch import fetch
from rlhf_dist.errors import WeightError
from rlhf_dist.records import PromptTask, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.rollout.spec import EngineSpec
from rlhf_dist.store.schema import rollout_batch
from rlhf_dist.store.weights import Manifest
from rlhf_dist.telemetry import logs, tracing
from rlhf_dist.telemetry.ray_metrics import WorkerMetrics

log = logging.getLogger(__name__)

POLL_S = 5.0
"""An idle worker asks the store again after this many seconds."""


class RolloutWorker:
    """A Ray actor around one engine. `run` serves the store; other calls wait until the engine is idle."""

    def __init__(
        self, name: str, spec: EngineSpec, sampling: Sampling, *, seed: int, probe_tolerance: float, timeout_s: float
    ) -> None:
        """Take the settings; `start` builds the engine, so that its errors arrive as what they are."""
        self.name = name
        self._seed, self._timeout_s = seed, timeout_s
        self._probe_tolerance = probe_tolerance
        self._limit = spec.max_concurrent
        self._spec, self._sampling = spec, sampling
        self._engine: RolloutEngine
        self._alone = OneThread()
        self._retired = threading.Event()
        self._facts: dict[str, float] = defaultdict(float)
        """What was measured since the last report."""

    def __repr__(self) -> str:
        """How Ray's logs call it."""
        return f"RolloutWorker({self.name})"

    def start(self) -> int:
        """Build the engine, without weights before the first pull; returns the process id."""
        logs.to_file(self._spec.log_dir, self.name)
        self._engine = self._alone(self._spec.build, self._sampling)
        self._metrics = WorkerMetrics(self.name)
        log.info("engine is up", extra={"engine": self._spec.kind, "model": self._spec.model})
        return os.getpid()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def run(self, store: Any) -> None:
        """Until the worker is retired: lease samples, have the newest weights, generate, hand over.

        Waits for: prompts that may start under the staleness rule. Unblocked by: a submission or a new version.
        """
        asked = self._ask(store)
        while asked is not None:
            tasks = self._granted(asked)
            asked = self._alone(self._serve, store, tasks) if tasks else self._ask(store)

    def retire(self) -> None:
        """Finish what is leased, then let `run` return."""
        self._retired.set()

    def generate(self, store: Any, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers to prompts outside of training, from the newest weights, in canonical order."""
        return self._alone(self._answers, store, tasks)

    def pull(self, store: Any) -> int:
        """Have the newest weights; returns the version."""
        self._alone(self._pull, store)
        return self._engine.version

    def sleep(self) -> None:
        """Free the engine's device memory, once it is idle, for a learner that shares the device."""
        self._alone(self._engine.sleep)

    def _answers(self, store: Any, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        self._pull(store)
        self._add(tasks)
        samples: list[Sample] = []
        while self._engine.running:
            samples += self._engine.step()
        self._facts.clear()
        return rollout_batch(sorted(samples, key=lambda sample: sample.key))

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
        while self._engine.running:
            if finished := self._engine.step():
                handed_over.append(store.append.remote(self.name, rollout_batch(finished)))
                self._count(finished)
            if asked is None and self._engine.running <= granted // 2:
                asked = self._ask(store)
            elif asked is not None and _is_ready(asked):
                granted, asked = self._add(self._granted(asked)), None
        return asked, handed_over

    def _ask(self, store: Any) -> Any:
        """Ask for as many samples as the engine has room for; None once retired."""
        if self._retired.is_set():
            return None
        return store.next_prompts.remote(self.name, self._limit - self._engine.running, POLL_S)

    def _granted(self, asked: Any) -> list[PromptTask]:
        tasks: list[PromptTask] = fetch(asked, timeout_s=POLL_S + self._timeout_s, doing="leasing prompts")
        return tasks

    def _add(self, tasks: Sequence[PromptTask]) -> int:
        """Start the samples of some prompts; returns their number."""
        keys = [(task, key) for task in tasks for key in task.row_keys()]
        for task, key in keys:
            self._engine.add(SampleRequest(key, task.tokens, sample_seed(self._seed, key)))
        return len(keys)

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
        manifest: Manifest = ask(store.newest_weights.remote())
        with tracing.span("pull weights", version=manifest.version):
            self._engine.wake()
            tables = ask(list(manifest.buckets))
            self._engine.load_weights(tables, manifest.names, version=manifest.version)
            self._check(manifest)
        self._facts["pull_s"] = time.perf_counter() - began
        logs.CONTEXT["version"] = manifest.version
        self._metrics.pulled(manifest.version)
        log.info("pulled weights", extra={"seconds": self._facts["pull_s"], "bytes": manifest.num_bytes})

    def _check(self, manifest: Manifest) -> None:
        """Compare the engine with the learner where the version brings a probe."""
        if manifest.probe is not None:
            found = np.asarray(self._engine.probe(manifest.probe.tokens))
            difference = float(np.abs(found - np.asarray(manifest.probe.log_probs)).mean())
            self._facts["probe_diff"] = difference
            # A NaN compares false, so the condition is written the way that a NaN fails it.
            if not difference <= self._probe_tolerance:
                raise WeightError(
                    f"weight version {manifest.version}: the engine's log-probs of the probe differ from the learner's by "
                    f"{difference:.3g} nats in the mean; expected at most {self._probe_tolerance:g} "
                    "(weights.probe_tolerance). The weights arrived whole, so engine and learner disagree on the model"
                )


def _is_ready(ref: Any) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])
