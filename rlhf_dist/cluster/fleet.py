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

from rlhf_dist.cluster import head, pulse
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.errors import RlhfDistError, WaitTimeout, WorkerDied, WorkerLost, WorkersExhausted

log = logging.getLogger(__name__)

CLOSE_S = 10.0
"""Granted to workers together to end in order what they hold; then they are killed."""


@dataclass(frozen=True)
class WorkerKind:
    """What a fleet must know of its workers: actors with `start`, `pulse` and `close`, and `retire` if they are ever let go."""

    name: str
    """Workers are `NAME-0`, `NAME-1`, ...; a name is never used twice."""
    spawn: Callable[[str, int], Any]
    """Makes the actor of a name, in a slot: 0, 1, ... the lowest that no living worker has."""
    room: Callable[[], int] = lambda: 0
    """How many more actors the cluster could start now."""


@dataclass(frozen=True)
class Service:
    """What started workers do for as long as a store lives."""

    run: Callable[[Any], Any]
    """Begins a worker's loop, which ends when it was let go."""
    lost: Callable[[str], Any]
    """Hands back what a lost worker of that name held."""


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
        self._service: Service | None = None
        self.ready: dict[str, Any] = {}
        """Workers that serve, by name."""
        self.starting: dict[str, Any] = {}
        """Workers that load their models, or wait for a node with room."""
        self._leaving: dict[str, Any] = {}
        self._slots: dict[str, int] = {}
        self.wanted = size.most
        self._numbered = 0
        self._lost_in_iteration = 0
        self._start_s = float("inf")
        self.restarts = 0
        """Workers lost while they served."""
        self._paused = False

    def open(self, *, timeout_s: float) -> None:
        """Ask for the fewest workers, or for those that are missing; `wait_for_fewest` waits for them.

        Args:
            timeout_s: granted to each of them, and to each that takes the place of a lost one, to start.
        """
        self._start_s, self._paused = timeout_s, False
        while len(self.ready) + len(self.starting) < self.size.fewest:
            self._start()

    def serve(self, service: Service | None) -> None:
        """Let all workers, and those that come, begin this service, and forget the one before; None: only answer calls."""
        self._service = service
        for name in [*self._leaving]:
            self._forget(name)
        for name in self.ready:
            self.watch.forget_calls(name)
            self._begin(name)

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

    def forgive(self) -> None:
        """After an iteration losses are counted anew, and who is missing is tried again."""
        self._lost_in_iteration = 0
        self._fill()

    def resize(self, wanted: int) -> None:
        """Go for another number of workers, after an iteration."""
        self.wanted = wanted
        self.forgive()
        while self.starting and len(self.ready) + len(self.starting) > self.wanted:
            self._forget([*self.starting][-1])
        while len(self.ready) > self.wanted:
            self._let_go([*self.ready][-1])

    def pause(self) -> None:
        """Start nobody until `go_on`: others have the devices. Who is lost meanwhile is replaced then."""
        self._paused = True

    def go_on(self) -> None:
        """Start who is missing, and whoever will be."""
        self._paused = False
        self._fill()

    def start_over(self) -> None:
        """Stop who is starting: what it was told of its place holds no more. `open` asks for others."""
        for name in [*self.starting]:
            self._forget(name)

    def states(self) -> dict[str, str]:
        """Worker to `ready`, `starting` or `leaving`."""
        groups = {"ready": self.ready, "starting": self.starting, "leaving": self._leaving}
        return {name: state for state, members in groups.items() for name in members}

    def failed(self, name: str, error: RlhfDistError) -> None:
        """Whoever waited for a worker says that it is gone, or raised; only the first time counts.

        Lost or hung, its work goes to another; an error of ours ends the run. One that did not come up although there are
        enough without it, say on a node without the model, is only reported; `resize` tries again after the iteration.
        """
        if name not in self.states():
            return  # we stopped it ourselves
        spare = name in self.starting and len(self.ready) >= self.size.fewest
        if not spare and not isinstance(error, WorkerLost):
            raise error
        self.restarts += name in self.ready
        self._forget(name)
        if self._service is not None:
            self._service.lost(name)
        first = str(error).splitlines()[0]
        log.warning("%s is lost: %s", name, first)
        if not spare:
            self._count_loss(error)
            self.watch.say(f"{first}; another takes its place")
            self._fill()

    def close(self) -> None:
        """Let everybody end in order what he holds, as engines must that share memory and have processes, and stop him."""
        import ray

        self._service = None
        ending = [worker.close.remote() for worker in (*self.ready.values(), *self._leaving.values())]
        if ending and head.fallen() is None:
            ray.wait(ending, num_returns=len(ending), timeout=CLOSE_S)
        for name in self.states():
            self._forget(name)

    def _start(self) -> None:
        name = f"{self.kind.name}-{self._numbered}"
        self._numbered += 1
        taken = {self._slots[other] for other in self.states()}
        slot = self._slots[name] = next(free for free in range(self._numbered) if free not in taken)
        worker = self.starting[name] = self.kind.spawn(name, slot)
        needed = len(self.ready) < self.size.fewest  # one more than that may wait for room for ever

        def failed(error: RlhfDistError) -> None:
            self.failed(name, error)

        def started(_: Any) -> None:
            if name in self.starting:
                self.ready[name] = self.starting.pop(name)
                self.watch.vigil.guard(name, lambda: pulse.ask(worker), lost=failed)
                self._begin(name)
                log.info("%s serves", name)
                self._fill()

        doing = "starting and loading its model"
        self.watch.vigil.guard(name, lambda: pulse.ask(worker), lost=failed, loading=True)
        within_s = self._start_s if needed else float("inf")
        self.watch.then(name, worker.start.remote(), started, doing=doing, failed=failed, within_s=within_s)

    def _begin(self, name: str) -> None:
        """Let a worker begin its loop, if there is one."""
        if self._service is None:
            return

        def failed(error: RlhfDistError) -> None:
            self.failed(name, error)

        def ended(_: Any) -> None:
            self._ended(name)

        ref = self._service.run(self.ready[name])
        self.watch.then(name, ref, ended, doing="running its loop", failed=failed)

    def _fill(self) -> None:
        """Start what there is room for, and keep one more waiting for a node to join, up to what is wanted."""
        missing = self.wanted - len(self.ready) - len(self.starting)
        if missing > 0 and not self._paused:
            for _ in range(min(missing, 1 + self.kind.room() - len(self.starting))):
                self._start()

    def _ended(self, name: str) -> None:
        """A loop came to its end: that of a worker that was let go."""
        if name not in self._leaving:
            raise WorkerDied(f"{name} ended its loop while the run was going on")
        ref = self._leaving[name].close.remote()

        def closed(_: Any) -> None:
            self._forget(name)

        self.watch.then(name, ref, closed, doing="closing", failed=closed, within_s=CLOSE_S)

    def _count_loss(self, error: RlhfDistError) -> None:
        self._lost_in_iteration += 1
        if self._lost_in_iteration > self.size.max_restarts:
            told = (
                f"\n{self._lost_in_iteration} {self.kind.name} workers were lost in this iteration; expected at most "
                f"{self.size.setting} = {self.size.max_restarts}"
            )
            raise WorkersExhausted(f"{error}{told if self.size.setting else ''}") from error

    def _let_go(self, name: str) -> None:
        """Let a worker finish what it holds and leave; when its loop ends, the actor is stopped."""
        worker = self._leaving[name] = self.ready.pop(name)
        worker.retire.remote()
        log.info("%s is let go", name)

    def _forget(self, name: str) -> None:
        """Be rid of a worker, whatever state it is in; one that hangs would hold its devices and memory."""
        self.watch.forget(name)
        for members in (self.ready, self.starting, self._leaving):
            if name in members:
                head.kill(members.pop(name))
