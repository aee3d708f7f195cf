"""Waiting on actors: always with a deadline, and always with an eye on the background loops of the other workers.

Failure has one exit: whatever a wait is for, the first worker that dies or raises ends it with its own traceback.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rlhf_dist.errors import RlhfDistError, WaitTimeout, WorkerDied


class Watch:
    """Knows every background loop of the run and waits for calls while watching them."""

    def __init__(self) -> None:
        """Watch nobody yet."""
        self._loops: dict[Any, str] = {}

    def add_loop(self, worker: str, ref: Any) -> None:
        """Watch a call that is meant to run until the end of the run."""
        self._loops[ref] = worker

    def forget(self) -> None:
        """Stop watching, because the run is over and its workers are about to be stopped."""
        self._loops.clear()

    def wait(self, refs: Mapping[str, Any], *, timeout_s: float, doing: str) -> dict[str, Any]:
        """Results of calls, by actor name.

        Args:
            refs: actor name to the reference of its call.
            timeout_s: seconds granted to all of them together.
            doing: what they do, for the error message.

        Raises:
            WaitTimeout: names who had not answered and what they were doing.
            WorkerDied: one of them, or a watched loop, died or raised; or the error it raised, if it is one of ours.
        """
        import ray

        waiting = {ref: name for name, ref in refs.items()}
        results: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        while waiting:
            left = deadline - time.monotonic()
            ready, _ = ray.wait([*waiting, *self._loops], num_returns=1, timeout=max(0.0, left))
            if not ready:
                names = ", ".join(sorted(waiting.values()))
                raise WaitTimeout(f"{names}: no answer within {timeout_s:g} s while {doing}")
            for ref in ready:
                if ref in self._loops:
                    self._loop_ended(ref)
                name = waiting.pop(ref)
                results[name] = _result(ref, name, doing)
        return {name: results[name] for name in refs}

    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        """Result of a single call; see `wait`."""
        return self.wait({name: ref}, timeout_s=timeout_s, doing=doing)[name]

    def _loop_ended(self, ref: Any) -> None:
        worker = self._loops.pop(ref)
        _result(ref, worker, "running its loop")
        raise WorkerDied(f"{worker} ended its loop while the run was going on")


def fetch(ref: Any, *, timeout_s: float, doing: str) -> Any:
    """Result of a call to the store (or of several), from inside a worker.

    Raises:
        WaitTimeout: no answer in time; says what was asked.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise WaitTimeout(f"store: no answer within {timeout_s:g} s while {doing}") from None


def _result(ref: Any, name: str, doing: str) -> Any:
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RlhfDistError):
            raise type(error.cause)(f"{name}, while {doing}: {error.cause}") from error
        raise WorkerDied(f"{name} raised while {doing}:\n{error}") from error
    except RayActorError as error:
        raise WorkerDied(f"{name} died while {doing}:\n{error}") from error
