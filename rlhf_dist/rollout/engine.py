"""What the rollout worker needs of a generation engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from rlhf_dist.errors import NumbersError, WeightError
from rlhf_dist.records import RowKey, Sample, SampleRequest


class RolloutEngine(Protocol):
    """Continuous generation on one model.

    engine.load_weights(tables, names, version=3)
    engine.add(request)
    while engine.running:
        for sample in engine.step():    # whatever finished in this step
            ...
    engine.close()

    All of it on one thread, but `check` and `close`. Each method but `close` raises `WorkerLost` when a process of the engine is
    gone or does not answer: another worker can take its place.
    """

    @property
    def version(self) -> int:
        """Weight version in the engine; -1 before the first, and after one that did not arrive whole."""

    @property
    def running(self) -> int:
        """Samples added and not finished."""

    def add(self, request: SampleRequest) -> None:
        """Start one more sample.

        Raises:
            WeightError: there is no whole version to sample from.
        """

    def step(self) -> list[Sample]:
        """Advance all running samples, by one token at least, and return those that ended.

        Raises:
            WeightError: there is no whole version to sample from.
            NumbersError: a log-prob is not finite; names the sample.
        """

    def abort(self) -> None:
        """Drop all running samples: what is added next comes out as from a new engine."""

    def load_weights(
        self, tables: Sequence[pa.Table], names: Sequence[str], *, version: int, partial: bool = False
    ) -> None:
        """Replace all weights by a complete version, while no sample runs: what was decoded and cached is of the old ones.

        A partial one replaces the weights that it has, in an engine that has a whole version. Whatever is raised in the middle,
        the old version is gone, and nothing is sampled before a whole one has arrived.

        Raises:
            WeightError: a checksum is wrong, a weight is missing, or there is nothing whole to put a partial version on.
        """

    def forget(self) -> None:
        """Have no version any more, so that the next is pulled whatever its number: a run that goes back counts again."""

    def probe(self, tokens: Sequence[int]) -> list[float]:
        """Log-probs of tokens[1:] given what precedes them, in nats, at temperature 1."""

    def sleep(self) -> None:
        """Give device memory back while nothing runs; the weights are gone then."""

    def wake(self) -> None:
        """Take memory for weights, which must be loaded next, and what else is needed with them. Does nothing when awake."""

    def check(self) -> None:
        """Do nothing while the engine is alive; from any thread, also while another call is going on."""

    def close(self) -> None:
        """End the engine in order: no process and no shared memory of it is left, within 15 s.

        From any thread, also while another call hangs, and more than once.
        """


class LoadedWeights:
    """Which version an engine samples from."""

    def __init__(self, *, whole: bool) -> None:
        """Of no version.

        Args:
            whole: whether the engine begins with weights of its own that may be sampled from.
        """
        self.version = -1
        self._whole = whole

    def forget(self) -> None:
        """None that may be sampled from."""
        self.version, self._whole = -1, False

    def replaced(self, *, partial: bool) -> None:
        """Another version begins to arrive, on top of this one or in its place.

        Raises:
            WeightError: a partial one, and there is no whole version.
        """
        if partial:
            self.check()
        self.forget()

    def arrived(self, version: int) -> None:
        """All of a version is in the engine."""
        self.version, self._whole = version, True

    def check(self) -> None:
        """Refuse to sample.

        Raises:
            WeightError: there is no whole version.
        """
        if not self._whole:
            raise WeightError(
                "the engine has no whole weight version; expected one to be loaded before samples are asked for"
            )


def check_finite(key: RowKey, log_probs: Sequence[float], *, first: int = 0) -> None:
    """Refuse a sample whose log-probs no learner could use.

    Args:
        key: names the sample.
        log_probs: in nats.
        first: place in the answer of the token that the first of them is of.

    Raises:
        NumbersError: names the sample and its first such token.
    """
    for place, value in enumerate(log_probs, start=first):
        if not math.isfinite(value):
            raise NumbersError(
                f"the engine gives the log-prob {value} to token {place} of prompt {key.prompt_id}, answer {key.sample_index}, "
                f"iteration {key.iteration}; expected a finite number. Its weights, or what it computed of them, are not finite"
            )
