"""What the rollout worker needs of a generation engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from rlhf_dist.records import Sample, SampleRequest


class RolloutEngine(Protocol):
    """Continuous generation on one model.

    engine.load_weights(tables, names, version=3)
    engine.add(request)
    while engine.running:
        for sample in engine.step():    # whatever finished in this step
            ...
    """

    version: int
    """Weight version in the engine; -1 before the first."""

    @property
    def running(self) -> int:
        """Samples added and not finished."""

    def add(self, request: SampleRequest) -> None:
        """Start one more sample."""

    def step(self) -> list[Sample]:
        """Advance all running samples, by one token at least, and return those that ended."""

    def load_weights(self, tables: Sequence[pa.Table], names: Sequence[str], *, version: int) -> None:
        """Replace all weights by a complete version, while no sample runs: what was decoded and cached is of the old ones.

        Raises:
            WeightError: a checksum is wrong or a weight is missing; the engine must then not be used any more.
        """

    def probe(self, tokens: Sequence[int]) -> list[float]:
        """Log-probs of tokens[1:] given what precedes them, in nats, at temperature 1."""

    def sleep(self) -> None:
        """Give device memory back while nothing runs; the weights are gone then."""

    def wake(self) -> None:
        """Take the memory again; weights must be loaded before the next sample. Does nothing when awake."""
