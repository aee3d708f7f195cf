"""What became of a call to an actor: its result, or an error of ours that says in its first line who is to blame."""

from __future__ import annotations

import logging
import re
from typing import Any

from rlhf_dist.errors import RlhfDistError, WorkerDied, WorkerLost

log = logging.getLogger(__name__)

REASONS = {
    "its node has died": "its node is gone",
    "ray.kill": "it was stopped",
    "End of file": "its process was killed, ran out of memory, exited or crashed",
}
"""Parts of what Ray says of a death, and what they mean; the first that fits counts."""


class LostTouch(WorkerLost):
    """An actor cannot reach another one, or what another one held; the other may be the one that is gone."""


def result_of(ref: Any, name: str, doing: str) -> Any:
    """Result of a call that has ended.

    Args:
        ref: its reference.
        name: the actor's name.
        doing: what it was asked to do.

    Raises:
        WorkerLost: the actor is gone.
        LostTouch: it is there, but could not reach another one.
        WorkerDied: it raised; below the first line comes its traceback.
        RlhfDistError: it raised this one of ours.
    """
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause: Any = error.cause
        while isinstance(cause, RayTaskError):  # it raised what another actor raised
            cause = cause.cause
        if isinstance(cause, RlhfDistError):
            raise type(cause)(f"{name}, while {doing}: {cause}") from error
        if isinstance(cause, RayError):
            log.warning("%s lost touch with another actor", name, extra={"details": str(error)})
            raise LostTouch(f"{name} lost touch with another actor while {doing} ({type(cause).__name__})") from error
        first = next(iter(str(cause).splitlines()), "")
        raise WorkerDied(f"{name} raised while {doing}: {type(cause).__name__}: {first}\n{error}") from error
    except RayActorError as error:
        raise _loss(error, name, doing) from error
    except RayError as error:
        raise LostTouch(f"{name}: what it held is lost, while {doing} ({type(error).__name__})") from error


def _loss(error: Exception, name: str, doing: str) -> WorkerLost:
    """What Ray says of a death, in one sentence; all of it goes to the log."""
    told = str(error)
    log.warning("%s died", name, extra={"details": told})
    where = re.search(r"\bpid: (\d+)", told), re.search(r"\bip: (\S+)", told)
    process = f", process {where[0][1]}" + (f" on {where[1][1]}" if where[1] else "") if where[0] else ""
    last = told.splitlines()[-1] if told else type(error).__name__
    reason = next((meaning for part, meaning in REASONS.items() if part in last), last[:200])
    return WorkerLost(f"{name} died while {doing}: {reason}{process}")
