"""Waiting on actors: always with a deadline, and always with an eye on everything else that the run has going on.

Failure has one exit: whatever a wait is for, the first actor that dies, hangs or raises ends it in one sentence that names this
actor, unless someone said that he can do without it (`failed`). Whoever only lost touch with another actor is not to blame for
it: the one that is gone is looked for, and named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_dist.cluster import head
from rlhf_dist.cluster.blame import LostTouch, result_of
from rlhf_dist.cluster.vigil import Patience, Vigil
from rlhf_dist.config import Timeouts
from rlhf_dist.errors import ClusterLost, RlhfDistError, WaitTimeout, WorkerLost

POLL_S = 5.0
"""An idle worker asks the store again after this many seconds."""
ECHO_S = 3.0
"""Before somebody is blamed for what he raised, all others have so many seconds to show that they are alive."""


@dataclass(frozen=True)
class _Awaited:
    """A call that nobody waits for, and what follows from its end."""

    worker: str
    doing: str
    done: Callable[[Any], None]
    failed: Callable[[RlhfDistError], None] | None
    deadline: float
    """On the monotonic clock."""
    granted_s: float


class Watch:
    """Knows every background call of the run, and everybody who must give signs of life, and waits for others meanwhile."""

    def __init__(self, patience: Patience | None = None) -> None:
        """Watch nobody yet."""
        self._awaited: dict[Any, _Awaited] = {}
        self.vigil = Vigil(patience or Patience())
        self.say: Callable[[str], None] = lambda told: None
        """Tells people what was lost and made good."""

    def then(
        self,
        worker: str,
        ref: Any,
        done: Callable[[Any], None],
        *,
        doing: str,
        failed: Callable[[RlhfDistError], None] | None = None,
        within_s: float = float("inf"),
    ) -> None:
        """Call `done` with the result of a call, once there is one and while somebody waits.

        Args:
            worker: the actor's name.
            ref: reference of the call.
            done: takes the result.
            doing: what the actor does meanwhile, for messages.
            failed: takes over when the call raises, its actor is gone or its time is up; without it, that ends the run.
            within_s: seconds granted to it.
        """
        self._awaited[ref] = _Awaited(worker, doing, done, failed, time.monotonic() + within_s, within_s)

    def forget(self, worker: str | None = None) -> None:
        """Stop watching a worker, or all of them, because they are about to be stopped."""
        self.vigil.forget(worker)
        self.forget_calls(worker)

    def forget_calls(self, worker: str | None = None) -> None:
        """The same, but go on to expect signs of life."""
        for ref in [ref for ref, each in self._awaited.items() if worker in (None, each.worker)]:
            del self._awaited[ref]

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
        self.vigil.meanwhile = doing
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
                results[name] = self._result(ready, name, doing)
        return {name: results[name] for name in refs}

    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        """Result of a single call; see `wait`."""
        return self.wait({name: ref}, timeout_s=timeout_s, doing=doing)[name]

    def several(self, name: str, refs: Sequence[Any], *, timeout_s: float, doing: str) -> list[Any]:
        """Results of several calls to one actor, in their order; see `wait`."""
        found = self.wait(
            {f"{name} ({number})": ref for number, ref in enumerate(refs)}, timeout_s=timeout_s, doing=doing
        )
        return [*found.values()]

    def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Let watched calls end, and what follows from them happen, until the condition holds; False after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._next([], deadline) is None:
                return condition()
        return True

    def _next(self, refs: list[Any], deadline: float) -> Any:
        """The next call that ended, after what follows from it if it is a watched one; None at the deadline.

        True: something else happened that somebody may wait for.
        """
        import ray

        while True:
            everything = [*refs, *self._awaited, *self.vigil.asked()]
            until = min(deadline, self.vigil.due(), *(each.deadline for each in self._awaited.values()))
            left = max(0.0, until - time.monotonic())
            if everything:
                ready, _ = ray.wait(everything, num_returns=1, timeout=left)
            else:
                time.sleep(left)
                ready = []
            if ready and (ready[0] in refs or ready[0] in self._awaited):
                if ready[0] in self._awaited:
                    self._ended(ready[0])
                return ready[0]
            if self.vigil.look() or self._gave_up():
                return True
            if time.monotonic() >= deadline:
                return None

    def _gave_up(self) -> bool:
        """Give up the watched calls whose time is up; whether there were any."""
        now = time.monotonic()
        late = [ref for ref, each in self._awaited.items() if each.deadline <= now]
        for ref in late:
            each = self._awaited.pop(ref)
            _failed(each, WaitTimeout(f"{each.worker}: no answer within {each.granted_s:g} s while {each.doing}"))
        return bool(late)

    def _ended(self, ref: Any) -> None:
        awaited = self._awaited.pop(ref)
        try:
            result = self._result(ref, awaited.worker, awaited.doing)
        except RlhfDistError as error:
            if error is self.vigil.ended_by:
                raise  # the worker only was the first who noticed
            _failed(awaited, error)
        else:
            awaited.done(result)

    def _result(self, ref: Any, name: str, doing: str) -> Any:
        try:
            return result_of(ref, name, doing)
        except RlhfDistError as error:
            if (gone := head.fallen()) is not None:
                raise ClusterLost(f"{gone} while {doing}") from error
            if not isinstance(error, WorkerLost) or isinstance(error, LostTouch):
                self.vigil.search(ECHO_S)  # it may only be the first who noticed that another one is gone
            raise


def watch_of(timeouts: Timeouts) -> Watch:
    """A watch as patient as a run's settings say."""
    return Watch(Patience(hung_s=timeouts.hung, stalled_s=timeouts.stalled))


def _failed(awaited: _Awaited, error: RlhfDistError) -> None:
    if awaited.failed is None:
        raise error
    awaited.failed(error)


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
