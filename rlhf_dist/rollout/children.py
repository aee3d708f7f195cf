"""The processes beside its own that an engine computes in: the death of one is the engine's, and none outlives it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from rlhf_dist.cluster.shared_memory import Ledger
from rlhf_dist.errors import WorkerLost

STARTING_POLL_S, POLL_S = 0.1, 1.0
"""How often new children and segments are looked for: segments are made while an engine starts."""
NEWS_S = 1.0
"""A call that fails of a child's death may fail before the death is known here."""
END_S = 5.0
"""Granted to a killed child to be gone."""


class Children:
    """Watches the processes that `multiprocessing` starts from now on, until `end`.

    When one dies the others are killed: in the middle of a collective they would wait for it for ever, and whoever waits for
    them here is woken by their end.
    """

    def __init__(self) -> None:
        """Begin to watch."""
        self._not_ours = {process.pid for process in multiprocessing.active_children()}
        self._known: dict[int, BaseProcess] = {}
        self._ledger = Ledger()
        self._poll_s = STARTING_POLL_S
        self._ending, self._lost = threading.Event(), threading.Event()
        self._cause = ""
        self._thread = threading.Thread(target=self._watch, name="engine-children", daemon=True)
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
        self._kill()

    def expect_end(self) -> None:
        """From now on a death is no loss."""
        self._ending.set()

    def end(self) -> None:
        """Kill who is left, and unlink what they shared."""
        self.expect_end()
        self._kill()
        self._thread.join()
        self._kill()  # one that was started just now
        until = time.monotonic() + END_S
        for process in self._known.values():
            process.join(max(0.0, until - time.monotonic()))
        self._ledger.close()

    def _kill(self) -> None:
        for process in [*self._known.values()]:
            process.kill()

    def _watch(self) -> None:
        while not self._ending.is_set():
            self._look()
            if not self._known:
                self._ending.wait(self._poll_s)
            elif gone := wait([process.sentinel for process in self._known.values()], timeout=self._poll_s):
                self._ended_by(next(process for process in self._known.values() if process.sentinel in gone))
                break

    def _look(self) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None and process.pid not in self._not_ours:
                self._known.setdefault(process.pid, process)
        self._ledger.note([os.getpid(), *self._known])

    def _ended_by(self, process: BaseProcess) -> None:
        """The first that died ends the others. One that raised while they started is no loss: it would raise again elsewhere."""
        if self._ending.is_set():
            return
        process.join(NEWS_S)
        code = process.exitcode
        if self._poll_s == STARTING_POLL_S and code is not None and code >= 0:
            self._kill()
        else:
            self.give_up(f"the engine's process {process.name} (pid {process.pid}) died, exit code {code}")
