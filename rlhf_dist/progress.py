"""Long loops say how far they are, to whoever listens; without a listener they are plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

Listener = Callable[[str, int, int], None]
"""Takes what is counted, how many are done, and of how many."""

LISTENERS: list[Listener] = []
EVERY = 64
"""Items between two reports: a listener costs nothing beside the work on one item."""


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one after the other; listeners hear how many are done."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            for listener in LISTENERS:
                listener(what, number, len(items))
        yield item


STEPS: list[Callable[[], None]] = []
"""Called at every `step`."""


def step() -> None:
    """A piece of work is done, of a kind whose number nobody counts: somebody may be watching that there is progress."""
    for listener in STEPS:
        listener()
