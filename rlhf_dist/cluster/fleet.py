"""Workers of one kind as one thing: they join, leave and die while the run goes on, and nobody else notices.

It serves any worker that takes part in no collective and whose work can be handed back: adding one is starting an actor, losing
one is returning its leases. One more worker than there is room for waits as a pending actor: Ray starts it as soon as a node
with room joins, and an autoscaler sees it as demand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.errors import RlhfDistError, WaitTimeout, WorkerDied, WorkerLost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerKind:
    """What a fleet must know of its workers: actors with a method `start`, and `retire` if they are ever let go."""

    name: str
    """Workers are `NAME-0`, `NAME-1`, ...; a name is never used twice."""
    spawn: Callable[[str, int], Any]
    """Makes the actor of a name, in a slot: 0, 1, ... the lowest that no living worker has."""
    run: Callable[[Any], Any] | None = None
    """Begins a started worker's loop, which ends when it was let go; None: it has none, and only answers calls."""
    lost: Callable[[str], Any] = lambda name: None
    """Hands back what a lost worker of that name held."""
    room: Callable[[], int] = lambda: 0
    """How many more actors the cluster could start now."""


@dataclass(frozen=True)
class FleetSize:
    """How many workers there may be, and how many may be lost."""

    fewest: int
    most: int
    max_restarts: int
    """Losses within one iteration that are made good; one more ends the run."""
    setting: str = ""
    """The key that says so, for the message; empty: there is none."""


class Fleet:
    """Starts, replaces and lets go workers. All of it happens while somebody waits on the `Watch`."""

    def __init__(self, kind: WorkerKind, size: FleetSize, watch: Watch) -> None:
        """Start nobody yet."""
        self.kind, self.size, self.watch = kind, size, watch
        self.ready: dict[str, Any] = {}
        """Workers that serve, by name."""
        self.starting: dict[str, Any] = {}
        """Workers that load their models, or wait for a node with room."""
        self._leaving: dict[str, Any] = {}
        self._slots: dict[str, int] = {}
        self.wanted = size.most
        self._numbered = 0
        self._lost_in_iteration = 0
        self.restarts = 0
        """Workers lost while they served."""

    def open(self) -> None:
        """Ask for the fewest workers; `wait_for_fewest` waits for them."""
        for _ in range(self.size.fewest):
            self._start()

    def wait_for_fewest(self, *, timeout_s: float) -> None:
        """Wait until there are enough workers to begin with.

        Raises:
            WaitTimeout: names who is not there.
        """
        if not self.watch.until(lambda: len(self.ready) >= self.size.fewest, timeout_s=timeout_s):
            raise WaitTimeout(
                f"{', '.join(self.starting)}: no answer within {timeout_s:g} s while starting and loading its model; "
                f"{len(self.ready)} {self.kind.name} workers are ready, expected {self.size.fewest}"
            )

    def resize(self, wanted: int) -> None:
        """Go for another number of workers, after an iteration; losses are counted anew."""
        self.wanted, self._lost_in_iteration = wanted, 0
        self._fill()
        while self.starting and len(self.ready) + len(self.starting) > self.wanted:
            self._stop(self.starting, [*self.starting][-1])
        while len(self.ready) > self.wanted:
            self._let_go([*self.ready][-1])

    def states(self) -> dict[str, str]:
        """Worker to `ready`, `starting` or `leaving`."""
        groups = {"ready": self.ready, "starting": self.starting, "leaving": self._leaving}
        return {name: state for state, members in groups.items() for name in members}

    def failed(self, name: str, error: RlhfDistError) -> None:
        """Whoever waited for a worker says that it is gone, or raised; only the first time counts.

        Without a process, its work goes to another; an error of ours ends the run. One that did not come up although there are
        enough without it, say on a node without the model, is only reported; `resize` tries again after the iteration.
        """
        if name not in self.states():
            return  # we stopped it ourselves
        spare = name in self.starting and len(self.ready) >= self.size.fewest
        if not spare and not isinstance(error, WorkerLost):
            raise error
        self.kind.lost(name)
        self.restarts += name in self.ready
        for members in (self.ready, self.starting, self._leaving):
            members.pop(name, None)
        log.warning("%s is lost: %s", name, str(error).splitlines()[0])
        if not spare:
            self._count_loss(error)
            self._fill()

    def close(self) -> None:
        """Stop everybody."""
        for members in (self.ready, self.starting, self._leaving):
            for name in [*members]:
                self._stop(members, name)

    def _start(self) -> None:
        name = f"{self.kind.name}-{self._numbered}"
        self._numbered += 1
        taken = {self._slots[other] for other in self.states()}
        slot = self._slots[name] = next(free for free in range(self._numbered) if free not in taken)
        worker = self.starting[name] = self.kind.spawn(name, slot)

        def failed(error: RlhfDistError) -> None:
            self.failed(name, error)

        def started(_: Any) -> None:
            if name in self.starting:
                self.ready[name] = self.starting.pop(name)
                if self.kind.run is not None:
                    self.watch.then(name, self.kind.run(worker), ended, doing="running its loop", failed=failed)
                log.info("%s serves", name)
                self._fill()

        def ended(_: Any) -> None:
            self._ended(name)

        self.watch.then(name, worker.start.remote(), started, doing="starting and loading its model", failed=failed)

    def _fill(self) -> None:
        """Start what there is room for, and keep one more waiting for a node to join, up to what is wanted."""
        missing = self.wanted - len(self.ready) - len(self.starting)
        if missing > 0:
            for _ in range(min(missing, 1 + self.kind.room() - len(self.starting))):
                self._start()

    def _ended(self, name: str) -> None:
        """A loop came to its end: that of a worker that was let go."""
        if name not in self._leaving:
            raise WorkerDied(f"{name} ended its loop while the run was going on")
        self._stop(self._leaving, name)

    def _count_loss(self, error: RlhfDistError) -> None:
        self._lost_in_iteration += 1
        if self._lost_in_iteration > self.size.max_restarts:
            told = (
                f"\n{self._lost_in_iteration} {self.kind.name} workers were lost in this iteration; expected at most "
                f"{self.size.setting} = {self.size.max_restarts}"
            )
            # Not `WorkerLost`: nobody takes its place.
            raise WorkerDied(f"{error}{told if self.size.setting else ''}") from error

    def _let_go(self, name: str) -> None:
        """Let a worker finish what it holds and leave; when its loop ends, the actor is stopped."""
        worker = self._leaving[name] = self.ready.pop(name)
        worker.retire.remote()
        log.info("%s is let go", name)

    def _stop(self, members: dict[str, Any], name: str) -> None:
        import ray

        ray.kill(members.pop(name))
