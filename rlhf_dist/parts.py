"""The running system, as the training loop holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.memory import Memory
from rlhf_dist.steering import State


def _stays(version: int) -> None:
    pass


class Turns(Protocol):
    """Who has the devices that a learner shares with others."""

    def to_learner(self) -> None:
        """From now on it does: to update, to publish, to be copied."""

    def to_others(self) -> None:
        """From now on engines and scorers do: to make samples."""


class NoTurns:
    """Everybody has devices of his own."""

    def to_learner(self) -> None:
        """It has them anyway."""

    def to_others(self) -> None:
        """They have them anyway."""


@dataclass(frozen=True)
class Parts:
    """The running system, wired by `stages.wiring`."""

    store: Any
    rollouts: Fleet
    scorers: Mapping[str, Fleet]
    """By the writer of the columns that they add."""
    learner: LearnerGroup
    watch: Watch
    turns: Turns
    memory: Memory[State]
    """The learner as it was after its last iterations."""
    move_reference: Callable[[int], None] = _stays
    """Takes the reference on to where the policy is, as of the version of that number."""
