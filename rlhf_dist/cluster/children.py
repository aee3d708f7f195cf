"""The processes beside its own that an actor computes in: the death of one is the actor's, and none outlives it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import psutil

from rlhf_dist.cluster.shared_memory import Ledger
from rlhf_dist.errors import WorkerLost

STARTING_POLL_S, POLL_S = 0.1, 1.0
"""How often new children and segments are looked for: segments are made while they start."""
NEWS_S = 1.0
"""A call that fails of a child's death may fail before the death is known here."""
REAPED_S = 0.1
"""Of two threads that ask for an exit code at once one is told, and has written it down by then."""
STOPPED_S = 5.0
"""So long one may be stopped: by a debugger, a cgroup's freezer, a laptop's lid."""
END_S = 5.0
"""Granted to killed children to be gone."""


class Children:
    """Watches the processes that `multiprocessing` starts from now on, until `end`.

    When one dies the others are killed: in the middle of a collective they would wait for it for ever, and whoever waits for
    them here is woken by their end.
    """

    def __init__(self) -> None:
        """Begin to watch."""
        self._not_ours = {process.pid for process in multiprocessing.active_children()}
        self._living: dict[int, BaseProcess] = {}
        self._ledger = Ledger()
        self._poll_s = STARTING_POLL_S
        self._stopped: dict[int, float] = {}
        """Since when, on the monotonic clock."""
        self._lost, self._ending, self._over = threading.Event(), threading.Event(), threading.Event()
        self._cause = ""
        self._thread = threading.Thread(target=self._watch, name="children", daemon=True)
        self._thread.start()

    def are_complete(self) -> None:
        """All have started: from now on little changes."""
        self._poll_s = POLL_S

    def check(self, *, news_s: float = 0.0) -> None:
        """Wait for news for so many seconds.

        Raises:
            WorkerLost: one has died, or was given up.
        """
        if self._lost.wait(news_s):
            raise WorkerLost(self._cause)

    def give_up(self, cause: str) -> None:
        """End them all, because of one that died or does not answer."""
        if not self._lost.is_set():
            self._cause = cause
            self._lost.set()
        self.kill()

    def expect_end(self) -> None:
        """From now on a death is no loss."""
        self._ending.set()

    def end(self) -> None:
        """Kill who is left, and unlink what they shared; a second time there is nothing to do."""
        if self._over.is_set():
            return
        self.expect_end()
        self._over.set()
        self.kill()
        self._thread.join(END_S)
        self._ledger.close()

    def kill(self) -> None:
        """All that live, also those that hang."""
        for process in [*self._living.values()]:
            process.kill()

    def _watch(self) -> None:
        while not self._over.is_set() or self._living:
            self._look()
            if not self._living:
                self._over.wait(self._poll_s)
                continue
            for gone in wait([process.sentinel for process in self._living.values()], timeout=self._poll_s):
                self._is_gone(next(each for each in self._living.values() if each.sentinel == gone))
            self._look_for_stopped()

    def _look(self) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None and process.pid not in self._not_ours:
                self._living.setdefault(process.pid, process)
                if self._over.is_set():
                    process.kill()
        self._ledger.note([os.getpid(), *self._living])

    def _look_for_stopped(self) -> None:
        """One that is stopped, and stays so, counts as dead: the others wait for it in a collective."""
        now = time.monotonic()
        stopped = {pid for pid in self._living if _is_stopped(pid)}
        self._stopped = {pid: self._stopped.get(pid, now) for pid in stopped}
        for pid, since in self._stopped.items():
            if now - since > STOPPED_S and not self._ending.is_set():
                self.give_up(f"the process {self._living[pid].name} (pid {pid}) is stopped")
                return

    def _is_gone(self, process: BaseProcess) -> None:
        """The first that died ends the others. One that raised while they started is no loss: it would raise again elsewhere."""
        code = _exit_code(process)
        del self._living[process.pid or 0]
        if self._poll_s == STARTING_POLL_S and code is not None and code >= 0:
            self.expect_end()
            self.kill()
        if not self._ending.is_set():
            known = "" if code is None else f", exit code {code}"
            self.give_up(f"the process {process.name} (pid {process.pid}) died{known}")


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _exit_code(process: BaseProcess) -> int | None:
    """Of a process that is gone; None where nobody can tell, as in Ray's actors, which leave the reaping to the kernel."""
    process.join(NEWS_S)
    if process.exitcode is None:
        time.sleep(REAPED_S)
    code = process.exitcode
    if code is None:
        # `multiprocessing`, and whoever waits by it, would take the dead one for alive for ever.
        process._popen.returncode = 255  # type: ignore[attr-defined]
    return code
