"""One thread for all the arithmetic of an actor whose calls arrive on several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class OneThread:
    """Runs calls one after the other, in the order of their arrival, on a thread of its own.

    libgomp keeps a pool of threads for each thread that calls it, and counts them all: when a model is built on one thread and
    run on another, the pools outnumber a small machine's cores, and then their threads sleep between operations instead of
    spinning (a 28 M parameter Llama generated 1.3 times as long for it on two cores).
    """

    def __init__(self) -> None:
        """Start the thread. It is a daemon (an executor's is not), so that a call without end does not keep the process."""
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run the call, wait for it, and return what it returns or raise what it raises."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: call(*arguments)))
        return future.result()

    def _run(self) -> None:
        while True:
            future, call = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where it was called from
                future.set_exception(error)
            del future, call  # what they hold (experience, weights) would otherwise live until the next call
