"""What each process did when: spans, kept in the process until the controller asks, and written as a Chrome trace.

Open `trace.json` in https://ui.perfetto.dev or chrome://tracing. Times are those of each machine's clock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_dist.files import as_json, write_text

KEPT_SPANS = 10_000
"""Per process; older ones are dropped, since nobody asked for them."""


class Span(NamedTuple):
    """Something that took time."""

    name: str
    start_us: float
    """Microseconds since 1970."""
    duration_us: float
    facts: dict[str, Any]


_spans: deque[Span] = deque(maxlen=KEPT_SPANS)
_lock = threading.Lock()


@contextmanager
def span(name: str, **facts: Any) -> Iterator[None]:
    """Record how long the block takes, under `name`, with some facts to read beside it."""
    start, began = time.time(), time.perf_counter()
    try:
        yield
    finally:
        _spans.append(Span(name, start * 1e6, (time.perf_counter() - began) * 1e6, facts))


def take() -> list[Span]:
    """Spans of this process since the last call."""
    with _lock:
        taken = list(_spans)
        _spans.clear()
    return taken


def write_trace(path: Path, spans: Mapping[str, Iterable[Span]], ray_events: Iterable[dict[str, Any]]) -> None:
    """Write spans and Ray's own events as a Chrome trace (the "Trace Event Format" of the Chromium project).

    Args:
        path: the file.
        spans: actor to its spans; each actor is a track of the process `rlhf_dist`.
        ray_events: what `ray.timeline()` returns; tracks of the machines they ran on.
    """
    events: list[dict[str, Any]] = []
    for track, (actor, found) in enumerate(sorted(spans.items())):
        where = {"pid": "rlhf_dist", "tid": track}
        events.append({"ph": "M", "name": "thread_name", "args": {"name": actor}, **where})
        for name, start, duration, facts in found:
            events.append({"ph": "X", "name": name, "ts": start, "dur": duration, "args": facts, **where})
    write_text(path, as_json({"traceEvents": [*events, *ray_events], "displayTimeUnit": "ms"}))


class Trace:
    """The trace of some iterations, written anew after each of them."""

    def __init__(self, path: Path, iterations: Iterable[int]) -> None:
        """Trace the given iterations into `path`."""
        self._path, self._iterations = path, frozenset(iterations)
        self._spans: dict[str, list[Span]] = {}
        self._ray_events: list[dict[str, Any]] = []

    def wants(self, iteration: int) -> bool:
        """Whether an iteration is to be traced."""
        return iteration in self._iterations

    def add(self, spans: Mapping[str, Iterable[Span]], *, since_us: float) -> None:
        """Add what has ended since then, in microseconds since 1970: of the actors, and of Ray's own timeline."""
        import ray

        window = (since_us, time.time() * 1e6)
        for actor, found in spans.items():
            kept = (each for each in found if window[0] <= each.start_us + each.duration_us)
            self._spans.setdefault(actor, []).extend(kept)
        self._ray_events += [event for event in ray.timeline() if _in(event, window)]
        write_trace(self._path, self._spans, self._ray_events)


def _in(event: Mapping[str, Any], window_us: tuple[float, float]) -> bool:
    return event.get("ph") == "M" or window_us[0] <= float(event.get("ts", 0)) <= window_us[1]
