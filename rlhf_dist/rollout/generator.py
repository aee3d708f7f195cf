"""Answers of a policy as its folder has it: outside of training, so without store and weight pulls."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlhf_dist.cluster.one_thread import OneThread
from rlhf_dist.records import PromptTask, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.rollout.spec import EngineSpec
from rlhf_dist.rollout.transformers_engine import TransformersEngine
from rlhf_dist.store.schema import rollout_batch
from rlhf_dist.telemetry import logs


class Generator:
    """A Ray actor around one engine with fixed weights."""

    def __init__(self, name: str, spec: EngineSpec, sampling: Sampling, *, seed: int) -> None:
        """Take the settings; `start` builds the engine, so that its errors arrive as what they are."""
        self._name, self._spec, self._sampling, self._seed = name, spec, sampling, seed
        self._alone = OneThread()
        self._engine: RolloutEngine

    def start(self) -> None:
        """Build the engine and load the weights."""
        logs.to_file(self._spec.log_dir, self._name)
        self._engine = self._alone(self._spec.build, self._sampling)

    def generate(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers in canonical order (`store.schema.ROLLOUT`); seeds depend on prompt and sample, not on the worker."""
        return self._alone(self._generate, tasks)

    def rate(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> list[list[float]]:
        """How likely each of some tokens is to come next; see `TransformersEngine.rate`, the one engine that can tell."""
        assert isinstance(self._engine, TransformersEngine)
        return self._alone(self._engine.rate, prompts, choices)

    def _generate(self, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        for task in tasks:
            for key in task.row_keys():
                self._engine.add(SampleRequest(key, task.tokens, sample_seed(self._seed, key)))
        samples: list[Sample] = []
        while self._engine.running:
            samples += self._engine.step()
        return rollout_batch(sorted(samples, key=lambda sample: sample.key))
