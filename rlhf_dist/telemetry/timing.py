"""Seconds per phase of one iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_dist.telemetry.tracing import span


class Timer:
    """Collects the seconds of named phases, as `timing_s/<phase>`."""

    def __init__(self) -> None:
        """Start the iteration's clock."""
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; several blocks of one name add up."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """All phases, and `timing_s/step`, the whole iteration."""
        step = time.perf_counter() - self._started
        return {**{f"timing_s/{name}": value for name, value in self.seconds.items()}, "timing_s/step": step}
