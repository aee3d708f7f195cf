"""The learner as it was after its last iterations, in the cluster's memory, where it outlives the ranks.

What it costs is bounded: a snapshot is taken only when those before have cost less than `SHARE` of the time since, and none is
kept that would fill the object store.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.snapshot import Snapshot

log = logging.getLogger(__name__)

SHARE = 0.01
"""Of the ranks' time that snapshots may take; they copy while engines generate."""
ROOM = 0.5
"""Of the object store that they may fill."""

S = TypeVar("S")


@dataclass(frozen=True)
class Kept(Generic[S]):
    """One moment."""

    state: S
    """What the controller knew then."""
    snapshot: Snapshot


class Memory(Generic[S]):
    """The last moments of a learner group, newest last."""

    def __init__(self, room_bytes: int, *, every: int = 0) -> None:
        """Remember nothing yet.

        Args:
            room_bytes: of the object store.
            every: so many of the last moments are kept, one of each iteration whatever that costs, to go back to; 0: the last
                one, of now and then.
        """
        self._room, self._every = ROOM * room_bytes, every
        self._kept: list[Kept[S]] = []
        self._due = 0.0

    def keep(self, learner: LearnerGroup, state: S) -> None:
        """Remember this moment, if it is time; the ranks copy behind what they were asked before."""
        if self._every:
            self._kept = self._kept[1 - self._every :] if self._every > 1 else []
        elif not self._is_time() or not self._has_room(learner.state_bytes()):
            return
        self._kept.append(Kept(state, learner.snapshot()))

    def _is_time(self) -> bool:
        """Whether the newest is whole and has been paid for; forgets those that it replaces."""
        if not self._kept:
            return time.monotonic() >= self._due
        newest = self._kept[-1].snapshot
        if not newest.is_whole():
            return False
        del self._kept[:-1]
        return time.monotonic() >= newest.taken + newest.cost().seconds / SHARE

    def _has_room(self, num_bytes: int) -> bool:
        """Whether the object store holds the newest and the next; if not, no more are made. The first steps add moments."""
        if 2 * num_bytes <= self._room:
            return True
        log.warning("no snapshots of the learner: twice %d bytes are too many for the object store", num_bytes)
        self._kept.clear()
        self._due = float("inf")
        return False

    def newest(self) -> Kept[S] | None:
        """The newest whole moment."""
        return next((each for each in reversed(self._kept) if each.snapshot.is_whole()), None)

    def back(self, learner: LearnerGroup, updates: int) -> None:
        """Let the learner be as it was before its last updates; before the oldest moment that is kept it cannot go."""
        updates = min(updates, len(self._kept))
        moment = self._kept[-updates]
        del self._kept[len(self._kept) - updates + 1 :]
        learner.restore(moment.snapshot)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def object_store_bytes() -> int:
    """Size of the cluster's object store."""
    import ray

    resources: dict[str, Any] = ray.cluster_resources()
    return int(resources.get("object_store_memory", 0))
