"""A rollout worker: it pulls prompts and weights when it is ready for them, and streams finished samples to the store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.cluster.watch import fetch
from rlhf_dist.errors import WeightError
from rlhf_dist.records import PromptTask, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.store.schema import rollout_batch
from rlhf_dist.store.weights import Manifest

POLL_S = 5.0
"""An idle worker asks the store again after this many seconds."""


@dataclass(frozen=True)
class EngineSpec:
    """Which engine, on what."""

    kind: str
    model: str
    dtype: str
    max_sequence: int
    max_concurrent: int
    tensor_parallel: int
    threads: int
    options: dict[str, Any]
    """Further arguments of vLLM."""

    def build(self, sampling: Sampling) -> RolloutEngine:
        """Start the engine in this process."""
        import torch

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(self.threads)
        if self.kind == "vllm":
            from rlhf_dist.rollout.vllm_engine import VLLMEngine

            return VLLMEngine(
                self.model,
                sampling,
                dtype=self.dtype,
                max_sequence=self.max_sequence,
                max_concurrent=self.max_concurrent,
                tensor_parallel=self.tensor_parallel,
                engine_options=self.options,
            )
        from rlhf_dist.rollout.transformers_engine import TransformersEngine

        device = "cuda" if on_gpu else "cpu"
        return TransformersEngine(
            self.model, sampling, dtype=self.dtype, max_concurrent=self.max_concurrent, device=device
        )


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
        self._lock = threading.Lock()
        self._stats: dict[str, float] = {"gen_s": 0.0, "pull_s": 0.0, "probe_diff": 0.0, "pulls": 0}

    def __repr__(self) -> str:
        """How Ray's logs call it."""
        return f"RolloutWorker({self.name})"

    def start(self) -> int:
        """Build the engine, without weights before the first pull; returns the process id."""
        self._engine = self._spec.build(self._sampling)
        return os.getpid()

    def run(self, store: Any, lease: int) -> None:
        """Until the end of the run: lease up to `lease` samples, have the newest weights, generate, hand over.

        Waits for: prompts that may start under the staleness rule. Unblocked by: a submission or a new version.
        """
        while True:
            leased = store.next_prompts.remote(self.name, min(lease, self._limit), POLL_S)
            tasks = fetch(leased, timeout_s=POLL_S + self._timeout_s, doing="leasing prompts")
            if not tasks:
                continue
            with self._lock:
                self._pull(store)
                started = time.perf_counter()
                handed_over = [store.append.remote(self.name, rollout_batch(some)) for some in self._generate(tasks)]
                fetch(handed_over, timeout_s=self._timeout_s, doing="accepting samples")
                self._stats["gen_s"] += time.perf_counter() - started

    def generate(self, store: Any, tasks: Sequence[PromptTask]) -> pa.RecordBatch:
        """Answers to prompts outside of training, from the newest weights, in canonical order."""
        with self._lock:
            self._pull(store)
            samples = [sample for some in self._generate(tasks) for sample in some]
        return rollout_batch(sorted(samples, key=lambda sample: sample.key))

    def pull(self, store: Any) -> int:
        """Have the newest weights; returns the version."""
        with self._lock:
            self._pull(store)
            return self._engine.version

    def take_stats(self) -> dict[str, float]:
        """Seconds generating and pulling since the last call, and the last probe's difference."""
        stats, self._stats = self._stats, dict.fromkeys(self._stats, 0.0)
        return stats

    def _generate(self, tasks: Sequence[PromptTask]) -> Any:
        """Yield samples as they end, several where several end in one step."""
        for task in tasks:
            for key in task.row_keys():
                self._engine.add(SampleRequest(key, task.tokens, sample_seed(self._seed, key)))
        while self._engine.running:
            finished: list[Sample] = self._engine.step()
            if finished:
                yield finished

    def _pull(self, store: Any) -> None:
        """Take the newest version, and compare the engine with the learner where the version brings a probe."""
        started = time.perf_counter()
        ask = partial(fetch, timeout_s=self._timeout_s, doing="handing out weights")
        if ask(store.newest_version.remote()) == self._engine.version:
            return
        manifest: Manifest = ask(store.newest_weights.remote())
        tables = ask(list(manifest.buckets))
        self._engine.load_weights(tables, manifest.names, version=manifest.version)
        if manifest.probe is not None:
            found = np.asarray(self._engine.probe(manifest.probe.tokens))
            difference = float(np.abs(found - np.asarray(manifest.probe.log_probs)).mean())
            self._stats["probe_diff"] = difference
            # A NaN compares false, so the condition is written the way that a NaN fails it.
            if not difference <= self._probe_tolerance:
                raise WeightError(
                    f"weight version {manifest.version}: the engine's log-probs of the probe differ from the learner's by "
                    f"{difference:.3g} nats in the mean; expected at most {self._probe_tolerance:g} "
                    "(weights.probe_tolerance). The weights arrived whole, so engine and learner disagree on the model"
                )
        self._stats["pull_s"] += time.perf_counter() - started
        self._stats["pulls"] += 1
