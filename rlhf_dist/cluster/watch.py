"""Waiting on actors: always with a deadline, and always with an eye on everything else that the run has going on.

Failure has one exit: whatever a wait is for, the first worker that dies or raises ends it with its own traceback, unless
someone said that he can do without that worker (`failed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_dist.errors import RlhfDistError, WaitTimeout, WorkerDied, WorkerLost

POLL_S = 5.0
"""An idle worker asks the store again after this many seconds."""


@dataclass(frozen=True)
class _Awaited:
    """A call that nobody waits for, and what follows from its end."""

    worker: str
    doing: str
    done: Callable[[Any], None]
    failed: Callable[[RlhfDistError], None] | None


class Watch:
    """Knows every background call of the run and waits for others while watching them."""

    def __init__(self) -> None:
        """Watch nobody yet."""
        self._awaited: dict[Any, _Awaited] = {}

    def then(
        self,
        worker: str,
        ref: Any,
        done: Callable[[Any], None],
        *,
        doing: str,
        failed: Callable[[RlhfDistError], None] | None = None,
    ) -> None:
        """Call `done` with the result of a call, once there is one and while somebody waits.

        Args:
            worker: the actor's name.
            ref: reference of the call.
            done: takes the result.
            doing: what the actor does meanwhile, for messages.
            failed: takes over when the call raises or its actor is gone; without it, that ends the run.
        """
        self._awaited[ref] = _Awaited(worker, doing, done, failed)

    def forget(self) -> None:
        """Stop watching, because the run is over and its workers are about to be stopped."""
        self._awaited.clear()

    def wait(self, refs: Mapping[str, Any], *, timeout_s: float, doing: str) -> dict[str, Any]:
        """Results of calls, by actor name.

        Args:
            refs: actor name to the reference of its call.
            timeout_s: seconds granted to all of them together.
            doing: what they do, for the error message.

        Raises:
            WaitTimeout: names who had not answered and what they were doing.
            WorkerDied: one of them, or a watched one, died or raised; or the error it raised, if it is one of ours.
        """
        waiting = {ref: name for name, ref in refs.items()}
        results: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        while waiting:
            ready = self._next([*waiting], deadline)
            if ready is None:
                names = ", ".join(sorted(waiting.values()))
                raise WaitTimeout(f"{names}: no answer within {timeout_s:g} s while {doing}")
            if ready in waiting:
                name = waiting.pop(ready)
                results[name] = _result(ready, name, doing)
        return {name: results[name] for name in refs}

    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        """Result of a single call; see `wait`."""
        return self.wait({name: ref}, timeout_s=timeout_s, doing=doing)[name]

    def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Let watched calls end, and what follows from them happen, until the condition holds; False after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._next([], deadline) is None:
                return condition()
        return True

    def _next(self, refs: list[Any], deadline: float) -> Any:
        """The next call that ended, after what follows from it if it is a watched one; None at the deadline."""
        import ray

        everything = [*refs, *self._awaited]
        left = max(0.0, deadline - time.monotonic())
        if not everything:
            time.sleep(left)
            return None
        ready, _ = ray.wait(everything, num_returns=1, timeout=left)
        if ready and ready[0] in self._awaited:
            self._ended(ready[0])
        return ready[0] if ready else None

    def _ended(self, ref: Any) -> None:
        awaited = self._awaited.pop(ref)
        try:
            result = _result(ref, awaited.worker, awaited.doing)
        except RlhfDistError as error:
            if awaited.failed is None:
                raise
            awaited.failed(error)
        else:
            awaited.done(result)


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
        raise WorkerLost(f"{name} died while {doing}:\n{error}") from error
