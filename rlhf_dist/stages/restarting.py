"""After the loss of what nobody else can replace, a stage goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from rlhf_dist.config import Job
from rlhf_dist.errors import ClusterLost, WaitTimeout, WorkerLost
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.telemetry import logs

T = TypeVar("T")


class Begun(Protocol):
    """How far a stage has come."""

    @property
    def step(self) -> int:
        """Steps that are done."""


B = TypeVar("B", bound=Begun)


def restarting(config: Job, folder: RunFolder, attempt: Callable[[B], T], begin: B, again: Callable[[], B]) -> T:
    """Do a stage's work; after the loss of an actor or a wait that ran out again, at most `restarts` times.

    Args:
        config: the stage's settings.
        folder: where it is said.
        attempt: starts what the work needs, does it from where it is told on, and stops what it started.
        begin: where to begin.
        again: where to go on after a loss.

    Raises:
        WorkerLost: once more than there are restarts.
        WaitTimeout: likewise.
        ClusterLost: Ray itself is gone; this is said at once, since ending takes it its time.
    """
    logs.to_file(logs.log_dir(folder.path), "controller")
    for restart in range(config.restarts + 1):
        try:
            return attempt(begin)
        except ClusterLost as error:
            folder.listeners.clear()
            folder.tell("failed", error=f"ClusterLost: {error}")
            raise
        except (WorkerLost, WaitTimeout) as error:
            if restart == config.restarts:
                raise
            begin = again()
            folder.going_on(error, iteration=begin.step, restart=restart + 1, most=config.restarts)
    raise AssertionError("the last restart returns or raises")
