"""After the loss of what nobody else can replace, a stage goes on by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from rlhf_dist.cluster.session import start_anew
from rlhf_dist.config import Job
from rlhf_dist.errors import ClusterLost, EnvironmentProblem, RunError, WaitTimeout, WorkerLost
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.telemetry import logs

log = logging.getLogger(__name__)
T = TypeVar("T")


class Begun(Protocol):
    """How far a stage has come."""

    @property
    def step(self) -> int:
        """Steps that are done."""


B = TypeVar("B", bound=Begun)


def restarting(config: Job, folder: RunFolder, attempt: Callable[[B], T], begin: B, again: Callable[[], B]) -> T:
    """Do a stage's work; after the loss of an actor or of Ray, or a wait that ran out, again, at most `restarts` times.

    What `attempt` started on a cluster that is gone, it has let go of; a cluster that was started here is started anew.

    Args:
        config: the stage's settings.
        folder: where it is said.
        attempt: starts what the work needs, does it from where it is told on, and stops what it started.
        begin: where to begin.
        again: where to go on after a loss.

    Raises:
        WorkerLost: once more than there are restarts.
        WaitTimeout: likewise.
        ClusterLost: likewise, or the cluster was not started here.
    """
    logs.to_file(logs.log_dir(folder.path), "controller")
    for restart in range(config.restarts + 1):
        try:
            return attempt(begin)
        except (ClusterLost, WorkerLost, WaitTimeout) as error:
            if not _may_go_on(error, folder, left=config.restarts - restart):
                raise
            begin = again()
            folder.going_on(error, iteration=begin.step, restart=restart + 1, most=config.restarts)
    raise AssertionError("the last restart returns or raises")


def _may_go_on(loss: RunError, folder: RunFolder, *, left: int) -> bool:
    """Whether a restart is left, and a cluster to go on with; that Ray is gone is said at once: ending takes a while."""
    if not isinstance(loss, ClusterLost):
        return left > 0
    folder.listeners.clear()
    log.warning("%s", loss)
    if left:
        folder.tell("restarting", cause=str(loss))
        try:
            if start_anew():
                return True
        except EnvironmentProblem as problem:
            raise ClusterLost(f"{loss}, and a new cluster cannot be started: {problem}") from loss
    folder.tell("failed", error=f"ClusterLost: {loss}")
    return False
