"""Signs of life: what an actor answers while it works, so that who is hung is told from who is busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

GROUP = "pulse"
"""Ray's concurrency group of the call, which no other call of the actor can hold up."""
GROUPS = {GROUP: 1}


class Beat(NamedTuple):
    """One sign of life."""

    steps: int
    """Pieces of work done since the start: decoding steps, batches scored."""
    doing: str
    """What is worked at; empty: nothing that must go forward, it waits for others."""


class Pulse:
    """Counts the steps of an actor's work; read from another thread."""

    def __init__(self) -> None:
        """Nothing is done yet."""
        self._steps, self._doing = 0, ""

    def step(self) -> None:
        """A piece of work is done."""
        self._steps += 1

    @contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """Inside the block steps are expected; a wait for another actor is no work."""
        before, self._doing = self._doing, doing
        self.step()
        try:
            yield
        finally:
            self.step()
            self._doing = before

    def beat(self) -> Beat:
        """The sign of life."""
        return Beat(self._steps, self._doing)


def watched(kind: type[Any]) -> Any:
    """Ray's class of actors of a kind that has a method `pulse`, and maybe further concurrency groups: `also`."""
    import ray

    made: Any = ray.remote
    return made(concurrency_groups=GROUPS | getattr(kind, "also", {}))(kind)


def ask(actor: Any) -> Any:
    """Reference of an actor's next beat, answered beside whatever it is busy with."""
    return actor.pulse.options(concurrency_group=GROUP).remote()
