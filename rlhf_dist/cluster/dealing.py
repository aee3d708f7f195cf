"""Work dealt out to a fleet: every worker gets its share, and a lost worker's share is asked of another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.errors import WaitTimeout, WorkerLost

Item = TypeVar("Item")


def deal(
    fleet: Fleet, items: Sequence[Item], call: Callable[[Any, Sequence[Item]], Any], *, timeout_s: float, doing: str
) -> list[tuple[Sequence[int], Any]]:
    """Ask every ready worker for its share of some items.

    Args:
        fleet: workers.
        items: what is asked; worker n of N gets items n, n + N, ...
        call: takes a worker and its share, and returns the reference of the call.
        timeout_s: seconds granted to all shares together, and anew to those that are asked of another worker.
        doing: what the workers do, for messages.

    Returns:
        for each share, the numbers of its items and what the worker answered.

    Raises:
        WaitTimeout: no answer in time, or no worker was left and none came.
    """
    if not items:
        return []
    if not fleet.watch.until(lambda: bool(fleet.ready), timeout_s=timeout_s):
        raise WaitTimeout(f"no {fleet.kind.name} worker is ready after {timeout_s:g} s, for {doing}")
    names = [*fleet.ready]
    shares = [range(first, len(items), len(names)) for first in range(len(names))]
    waiting = [_asked(fleet, name, share, items, call) for name, share in zip(names, shares, strict=True) if share]
    found = []
    deadline = time.monotonic() + timeout_s
    while waiting:
        name, share, ref = waiting.pop(0)
        try:
            left = max(0.0, deadline - time.monotonic())
            found.append((share, fleet.watch.one(name, ref, timeout_s=left, doing=doing)))
        except WorkerLost as error:
            if error is fleet.watch.vigil.ended_by:
                raise  # somebody else is lost
            fleet.failed(name, error)
            if not fleet.watch.until(partial(_has_others_than, fleet, name), timeout_s=timeout_s):
                raise WaitTimeout(
                    f"{name} was lost while {doing}, and no other {fleet.kind.name} worker is ready after {timeout_s:g} s"
                ) from None
            deadline = time.monotonic() + timeout_s
            waiting.append(_asked(fleet, next(iter(fleet.ready)), share, items, call))
    return found


def everyone(fleet: Fleet, call: Callable[[Any], Any], *, timeout_s: float, doing: str) -> dict[str, Any]:
    """Ask all ready workers the same; who is lost meanwhile is replaced, and has no answer.

    Args:
        fleet: workers.
        call: takes a worker, and returns the reference of the call.
        timeout_s: seconds granted to each.
        doing: what they do, for messages.

    Returns:
        answers by the workers' names.

    Raises:
        WaitTimeout: somebody did not answer in time.
    """
    found = {}
    for name, ref in {name: call(worker) for name, worker in fleet.ready.items()}.items():
        try:
            found[name] = fleet.watch.one(name, ref, timeout_s=timeout_s, doing=doing)
        except WorkerLost as error:
            if error is fleet.watch.vigil.ended_by:
                raise  # somebody else is lost
            fleet.failed(name, error)
    return found


def _asked(
    fleet: Fleet, name: str, share: Sequence[int], items: Sequence[Item], call: Callable[[Any, Sequence[Item]], Any]
) -> tuple[str, Sequence[int], Any]:
    return name, share, call(fleet.ready[name], [items[number] for number in share])


def _has_others_than(fleet: Fleet, name: str) -> bool:
    return name not in fleet.ready and bool(fleet.ready)
