"""The running system, as the training loop holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.memory import Memory
from rlhf_dist.steering import State


def _stays(version: int) -> None:
    pass


@dataclass(frozen=True)
class Parts:
    """The running system, wired by `stages.wiring`."""

    store: Any
    rollouts: Fleet
    scorers: Mapping[str, Fleet]
    """By the writer of the columns that they add."""
    learner: LearnerGroup
    watch: Watch
    lent: Callable[[], AbstractContextManager[None]]
    """Around an update: devices that engines share with the learner are the learner's."""
    memory: Memory[State]
    """The learner as it was after its last iterations."""
    move_reference: Callable[[int], None] = _stays
    """Takes the reference on to where the policy is, as of the version of that number."""
