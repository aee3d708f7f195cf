"""Everybody who must give signs of life, and who gave none: dead, hung, or at work without getting on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlhf_dist.cluster import head
from rlhf_dist.cluster.blame import result_of
from rlhf_dist.cluster.pulse import Beat
from rlhf_dist.errors import ClusterLost, RlhfDistError, WorkerLost

SLEPT_S = 5.0
"""Who was not looked at for so long is not blamed for his silence: it was ours."""
ASKED_EACH_SECOND = 200
"""Most actors that are asked in a second; a larger cluster is asked less often."""
LOADING = 4.0
"""While an actor loads its model it may be silent so many times as long: libraries are opened without letting go of the GIL."""


@dataclass(frozen=True)
class Patience:
    """How long silence may last, in seconds (`config.Timeouts`)."""

    hung_s: float = 30.0
    """Without any answer."""
    stalled_s: float = 300.0
    """At work without a step."""
    every_s: float = 1.0
    """Between two questions."""


@dataclass
class _Guarded:
    name: str
    ask: Callable[[], Any]
    lost: Callable[[RlhfDistError], None] | None
    factor: float
    ref: Any = None
    """Of the question that is not answered yet."""
    asked: float = 0.0
    beat: Beat = field(default_factory=lambda: Beat(0, ""))
    stepped: float = field(default_factory=time.monotonic)
    """When it last got on."""
    next: float = 0.0
    heard: bool = False


class Vigil:
    """Asks for signs of life, and finds who is lost."""

    def __init__(self, patience: Patience) -> None:
        """Guard nobody yet."""
        self.patience = patience
        self._guarded: dict[str, _Guarded] = {}
        self._looked = time.monotonic()
        self.meanwhile = "the run was going on"
        """What is waited for now, for messages."""
        self.ended_by: RlhfDistError | None = None
        """The loss of somebody whom nobody can do without."""

    def guard(
        self,
        name: str,
        ask: Callable[[], Any],
        *,
        lost: Callable[[RlhfDistError], None] | None = None,
        loading: bool = False,
    ) -> None:
        """Watch over an actor from now on, until it is lost or forgotten.

        Args:
            name: the actor's.
            ask: makes the call that it answers with a `Beat`.
            lost: takes over when it is lost; without it, that ends the run.
            loading: it is still starting: its silence counts from its first answer, and may last longer.
        """
        self._guarded[name] = _Guarded(name, ask, lost, LOADING if loading else 1.0, heard=not loading)

    def forget(self, name: str | None = None) -> None:
        """Watch over an actor no more, or over nobody."""
        for each in [*self._guarded] if name is None else [name]:
            self._guarded.pop(each, None)

    def asked(self) -> list[Any]:
        """Ask whoever is due; references of all questions that are not answered yet."""
        now = time.monotonic()
        for each in self._guarded.values():
            if each.ref is None and each.next <= now:
                each.ref, each.asked = each.ask(), now
        return [each.ref for each in self._guarded.values() if each.ref is not None]

    def due(self) -> float:
        """When somebody must be asked or judged next, on the monotonic clock."""
        times = [self._limit(each) if each.ref is not None else each.next for each in self._guarded.values()]
        return min(times, default=float("inf"))

    def look(self) -> bool:
        """Take the answers that have come, and give up who is silent; whether anybody was lost.

        Raises:
            WorkerLost: somebody is lost whom nobody can do without.
            ClusterLost: Ray itself is gone.
        """
        import ray

        if (gone := head.fallen()) is not None:
            raise ClusterLost(f"{gone} while {self.meanwhile}")
        now = time.monotonic()
        slept, self._looked = now - self._looked > SLEPT_S, now
        if slept:
            for each in self._guarded.values():
                each.asked = each.stepped = now
        waiting = {each.ref: each for each in self._guarded.values() if each.ref is not None}
        ready = ray.wait([*waiting], num_returns=len(waiting), timeout=0)[0] if waiting else []
        found = [self._answered(waiting[ref], now) for ref in ready]
        silent = [each for each in waiting.values() if each.ref is not None and now >= self._limit(each)]
        found += [self._silent(each, now - each.asked) for each in silent]
        lost = [(each, error) for each, error in found if error is not None]
        for each, error in lost:
            self._give_up(each, error)
        return bool(lost)

    def search(self, within_s: float) -> bool:
        """Ask everybody at once, and wait for the answers; see `look`."""
        import ray

        for each in self._guarded.values():
            if each.ref is None:
                each.next = 0.0
        refs = self.asked()
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=within_s)
        return self.look()

    def _limit(self, each: _Guarded) -> float:
        return each.asked + self.patience.hung_s * each.factor if each.heard else float("inf")

    def _answered(self, each: _Guarded, now: float) -> tuple[_Guarded, RlhfDistError | None]:
        ref, each.ref, each.heard = each.ref, None, True
        each.next = now + max(self.patience.every_s, len(self._guarded) / ASKED_EACH_SECOND)
        try:
            beat: Beat = result_of(ref, each.name, self._doing(each))
        except RlhfDistError as error:
            return each, error
        if not beat.doing or beat != each.beat:
            each.stepped = now
        each.beat = beat
        idle = now - each.stepped
        if idle < self.patience.stalled_s * each.factor:
            return each, None
        return each, WorkerLost(
            f"{each.name} hangs: no progress for {idle:.0f} s while {beat.doing} (timeouts.stalled)"
        )

    def _silent(self, each: _Guarded, silent_s: float) -> tuple[_Guarded, RlhfDistError]:
        return each, WorkerLost(
            f"{each.name} hangs: no sign of life for {silent_s:.0f} s while {self._doing(each)} (timeouts.hung)"
        )

    def _doing(self, each: _Guarded) -> str:
        if each.factor > 1.0:
            return "starting and loading its model"
        return each.beat.doing or self.meanwhile

    def _give_up(self, each: _Guarded, error: RlhfDistError) -> None:
        self._guarded.pop(each.name, None)
        if each.lost is None:
            self.ended_by = error
            raise error
        each.lost(error)
