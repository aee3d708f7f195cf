"""A process around one engine that answers what it is asked, and asking a fleet of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rlhf_dist.cluster.dealing import deal
from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.cluster.one_thread import OneThread
from rlhf_dist.cluster.pulse import Beat, Pulse
from rlhf_dist.records import PromptTask, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.rollout.spec import EngineSpec
from rlhf_dist.rollout.transformers_engine import TransformersEngine
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.telemetry import logs, tracing

log = logging.getLogger(__name__)


class Generator:
    """A Ray actor around one engine. With `EngineSpec.fixed` it generates from the weights of the model's folder."""

    def __init__(self, name: str, spec: EngineSpec, sampling: Sampling, *, seed: int) -> None:
        """Take the settings; `start` builds the engine, so that its errors arrive as what they are."""
        self.name = name
        self._spec, self._sampling, self._seed = spec, sampling, seed
        self._alone = OneThread()
        self._progress = Pulse()
        self._built: RolloutEngine | None = None

    def __repr__(self) -> str:
        """How Ray's logs call it."""
        return f"{type(self).__name__}({self.name})"

    def start(self) -> int:
        """Build the engine; returns the process id."""
        logs.to_file(self._spec.log_dir, self.name)
        self._built = self._alone(self._spec.build, self._sampling)
        log.info("engine is up", extra={"engine": self._spec.kind, "model": self._spec.model})
        return os.getpid()

    def pulse(self) -> Beat:
        """A sign of life, while the engine works, and while its processes live."""
        if self._built is not None:
            self._built.check()
        return self._progress.beat()

    def close(self) -> None:
        """End the engine in order, with the processes and the shared memory that it has."""
        if self._built is not None:
            self._built.close()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def generate(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers in canonical order (`store.schema.ROLLOUT`); seeds depend on prompt and sample, not on the worker."""
        return self._alone(self._answers, tasks)

    def rate(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> list[list[float]]:
        """How likely each of some tokens is to come next; see `TransformersEngine.rate`, the one engine that can tell."""
        assert isinstance(self._engine, TransformersEngine)
        with self._progress.working("rating"):
            return self._alone(self._engine.rate, prompts, choices)

    @property
    def _engine(self) -> RolloutEngine:
        assert self._built is not None, "`start` comes first"
        return self._built

    def _answers(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        self._add(tasks)
        samples: list[Sample] = []
        with self._progress.working("generating"):
            while self._engine.running:
                samples += self._engine.step()
                self._progress.step()
        return rollout_batch(sorted(samples, key=lambda sample: sample.key))

    def _add(self, tasks: Sequence[PromptTask]) -> int:
        """Start the samples of some prompts; returns their number."""
        keys = [(task, key) for task in tasks for key in task.row_keys()]
        for task, key in keys:
            self._engine.add(SampleRequest(key, task.tokens, sample_seed(self._seed, key)))
        return len(keys)


def answers(fleet: Fleet, tasks: Sequence[PromptTask], *, timeout_s: float) -> pa.RecordBatch | None:
    """A fleet's answers to prompts, ordered by prompt and sample (`store.schema.ROLLOUT`); None without prompts.

    Args:
        fleet: generators, or rollout workers, which take the newest weights first.
        tasks: what to answer; prompts' ids must differ.
        timeout_s: seconds granted to each worker's share.
    """

    def ask(worker: Any, share: Sequence[PromptTask]) -> Any:
        return worker.generate.remote(share)

    found = [batch for _, batch in deal(fleet, tasks, ask, timeout_s=timeout_s, doing="answering prompts")]
    order = [("prompt_id", "ascending"), ("sample_index", "ascending")]
    return pa.Table.from_batches(found).sort_by(order).combine_chunks().to_batches()[0] if found else None


def ratings(
    fleet: Fleet, prompts: Sequence[Sequence[int]], choices: Sequence[int], *, timeout_s: float
) -> list[list[float]]:
    """For each prompt, how likely each of some tokens is to come next; see `TransformersEngine.rate`."""

    def ask(worker: Any, share: Sequence[Sequence[int]]) -> Any:
        return worker.rate.remote(share, choices)

    rated: list[list[float]] = [[] for _ in prompts]
    for numbers, part in deal(fleet, prompts, ask, timeout_s=timeout_s, doing="rating"):
        for number, told in zip(numbers, part, strict=True):
            rated[number] = told
    return rated
