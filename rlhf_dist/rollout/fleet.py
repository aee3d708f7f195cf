"""The rollout workers as one thing: they join, leave and die while the run goes on, and nobody else notices.

Nothing that a rollout worker does is a collective: it leases prompts and pulls weights by itself. So adding one is starting
an actor, and losing one is handing its leases back. One more worker than there is room for waits as a pending actor: Ray
starts it as soon as a node with room joins, and an autoscaler sees it as demand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.errors import RlhfDistError, WaitTimeout, WorkerLost
from rlhf_dist.records import PromptTask

log = logging.getLogger(__name__)

GROW_ABOVE = 0.3
"""Another worker is wanted while the learner waits for samples for more than this share of an iteration."""
SHRINK_BELOW = 0.1
"""A worker is let go once the learner would wait for less than this share without it."""


@dataclass(frozen=True)
class FleetSize:
    """How many workers there may be, and how many may be lost."""

    fewest: int
    most: int
    max_restarts: int
    """Losses within one iteration that are made good; one more ends the run."""


class RolloutFleet:
    """Starts, replaces and lets go rollout workers. All of it happens while somebody waits on the `Watch`."""

    def __init__(
        self, spawn: Callable[[str, int], Any], room: Callable[[], int], store: Any, watch: Watch, size: FleetSize
    ) -> None:
        """Start nobody yet.

        Args:
            spawn: makes the actor of a name, in a slot: 0, 1, ... the lowest that no living worker has.
            room: how many more actors the cluster could start now.
            store: the store that workers lease from.
            watch: how to wait.
            size: bounds.
        """
        self._spawn, self._room, self._store, self._watch, self.size = spawn, room, store, watch, size
        self.ready: dict[str, Any] = {}
        """Workers that serve, by name."""
        self.starting: dict[str, Any] = {}
        """Workers that load their engine, or wait for a node with room."""
        self._leaving: dict[str, Any] = {}
        self._slots: dict[str, int] = {}
        self._wanted = size.most
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
        if not self._watch.until(lambda: len(self.ready) >= self.size.fewest, timeout_s=timeout_s):
            raise WaitTimeout(
                f"{', '.join(self.starting)}: no answer within {timeout_s:g} s while starting and loading its model; "
                f"{len(self.ready)} rollout workers are ready, expected {self.size.fewest}"
            )

    def balance(self, *, waited_s: float, step_s: float) -> None:
        """Follow the measured balance of generating and training; called after every iteration.

        With n workers the learner waited w seconds of an iteration of s seconds. Generation takes n/(n-1) times as long
        with one worker less, so it would then wait w' = w n/(n-1) of s - w + w' seconds.
        """
        self._lost_in_iteration = 0
        workers = len(self.ready)
        if waited_s > GROW_ABOVE * step_s:
            self._wanted = min(self.size.most, workers + 1)
        elif workers > 1:
            without_one = waited_s * workers / (workers - 1)
            if without_one < SHRINK_BELOW * (step_s - waited_s + without_one):
                self._wanted = max(self.size.fewest, workers - 1)
        self._fill()
        while self.starting and len(self.ready) + len(self.starting) > self._wanted:
            self._stop(self.starting, [*self.starting][-1])
        while len(self.ready) > self._wanted:
            self._let_go([*self.ready][-1])

    def generate(self, tasks: Sequence[PromptTask], *, timeout_s: float) -> pa.RecordBatch | None:
        """Answers to prompts outside of training, in canonical order; those of a lost worker are asked of another."""

        def ask(name: str, share: Sequence[PromptTask]) -> tuple[str, Sequence[PromptTask], Any]:
            return name, share, self.ready[name].generate.remote(self._store, share)

        workers = [*self.ready]
        shares = {name: tasks[number :: len(workers)] for number, name in enumerate(workers)}
        calls = [ask(name, share) for name, share in shares.items() if share]
        found: list[pa.RecordBatch] = []
        while calls:
            name, share, ref = calls.pop(0)
            try:
                found.append(self._watch.one(name, ref, timeout_s=timeout_s, doing="answering held-out prompts"))
            except WorkerLost:
                self._watch.until(partial(self._has_others_than, name), timeout_s=timeout_s)
                calls.append(ask(next(iter(self.ready)), share))
        return pa.Table.from_batches(found).sort_by("prompt_id").combine_chunks().to_batches()[0] if found else None

    def _has_others_than(self, name: str) -> bool:
        return name not in self.ready and bool(self.ready)

    def sleep(self, *, timeout_s: float) -> None:
        """Let all engines give their device memory back until they pull the next weights; for `colocated` placement."""
        calls = {name: worker.sleep.remote() for name, worker in self.ready.items()}
        self._watch.wait(calls, timeout_s=timeout_s, doing="going to sleep")

    def states(self) -> dict[str, str]:
        """Worker to `ready`, `starting` or `leaving`."""
        groups = {"ready": self.ready, "starting": self.starting, "leaving": self._leaving}
        return {name: state for state, members in groups.items() for name in members}

    def close(self) -> None:
        """Stop everybody."""
        for members in (self.ready, self.starting, self._leaving):
            for name in [*members]:
                self._stop(members, name)

    def _start(self) -> None:
        name = f"rollout-{self._numbered}"
        self._numbered += 1
        taken = {self._slots[other] for other in self.states()}
        slot = self._slots[name] = next(free for free in range(self._numbered) if free not in taken)
        worker = self.starting[name] = self._spawn(name, slot)

        def failed(error: RlhfDistError) -> None:
            self._failed(name, error)

        def started(_: Any) -> None:
            if name in self.starting:
                self.ready[name] = self.starting.pop(name)
                loop = worker.run.remote(self._store)
                self._watch.then(
                    name, loop, lambda _: self._stop(self._leaving, name), doing="running its loop", failed=failed
                )
                log.info("%s serves", name)
                self._fill()

        self._watch.then(name, worker.start.remote(), started, doing="starting and loading its model", failed=failed)

    def _fill(self) -> None:
        """Start what there is room for, and keep one more waiting for a node to join, up to what is wanted."""
        missing = self._wanted - len(self.ready) - len(self.starting)
        if missing > 0:
            for _ in range(min(missing, 1 + self._room() - len(self.starting))):
                self._start()

    def _failed(self, name: str, error: RlhfDistError) -> None:
        """A worker is gone, or raised. Without a process, its work goes to another; an error of ours ends the run.

        One that did not come up although there are enough without it, say on a node without the model, is only reported;
        `balance` tries again after the iteration.
        """
        if name not in self.states():
            return  # we stopped it ourselves
        spare = name in self.starting and len(self.ready) >= self.size.fewest
        if not spare and not isinstance(error, WorkerLost):
            raise error
        self._store.release.remote(name)
        self.restarts += name in self.ready
        for members in (self.ready, self.starting, self._leaving):
            members.pop(name, None)
        log.warning("%s is lost: %s", name, str(error).splitlines()[0])
        if not spare:
            self._count_loss(error)
            self._fill()

    def _count_loss(self, error: RlhfDistError) -> None:
        self._lost_in_iteration += 1
        if self._lost_in_iteration > self.size.max_restarts:
            raise WorkerLost(
                f"{error}\n{self._lost_in_iteration} rollout workers were lost in this iteration; expected at most "
                f"rollout.max_restarts = {self.size.max_restarts}"
            )

    def _let_go(self, name: str) -> None:
        """Let a worker finish what it holds and leave; when its loop ends, the actor is stopped."""
        worker = self._leaving[name] = self.ready.pop(name)
        worker.retire.remote()
        log.info("%s is let go: the learner hardly waits for samples", name)

    def _stop(self, members: dict[str, Any], name: str) -> None:
        import ray

        ray.kill(members.pop(name))
