"""The shape that every stage has: a module of this room with these two functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rlhf_dist.stages.supervised import SharedLearner


class Prepared(Protocol):
    """What could be read and checked before a process is started."""

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""

    def example(self) -> str:
        """One row as the model will see it: its special tokens, what is learnt or read of it, and what ends an answer."""


class Stage(Protocol):
    """`prepare`, then `run`: mistakes end it in the first, and only the second writes or starts anything."""

    OUTPUT: str
    """The trained model's folder, or the file with what was found, within the run's folder."""

    def prepare(self, config: Any) -> Any:
        """Read and check everything; what it returns is a `Prepared`.

        Raises:
            UserError: names the key, folder or line, what was found and what was expected.
        """

    def run(self, config: Any, prepared: Any, folder: Any) -> None:
        """Do the work, and leave the run folder complete; PPO's is a `RLFolder`, the others' a `RunFolder`."""


class SharingStage(Stage, Protocol):
    """One that goes on from checkpoints, and can learn on a group that other stages use before and after it."""

    def prepare(self, config: Any, resume: Path | None = None) -> Any:
        """The same, for a run that goes on from the newest checkpoint in the folder `resume`."""

    def run(self, config: Any, prepared: Any, folder: Any, shared: SharedLearner | None = None) -> None:
        """The same, on the group of a pipeline, if there is one."""
