import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_dist.cluster.one_thread import OneThread


def test_calls_from_many_threads_run_on_one_and_never_at_once() -> None:
    alone, running, most = OneThread(), 0, 0

    def call(number: int) -> tuple[int, int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.001)
        running -= 1
        return number, threading.get_ident()

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda number: alone(call, number), range(40)))
    assert [number for number, _ in found] == list(range(40))
    assert len({thread for _, thread in found}) == 1
    assert most == 1


def test_an_error_is_raised_where_the_call_came_from_and_the_next_call_works() -> None:
    alone = OneThread()
    with pytest.raises(ValueError, match="invalid literal"):
        alone(int, "x")
    assert alone(int, "3") == 3


def test_nothing_of_a_call_is_kept_after_it() -> None:
    class Weights:
        pass

    alone, weights = OneThread(), Weights()
    gone = weakref.ref(weights)
    alone(id, weights)
    del weights
    deadline = time.monotonic() + 5
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
    assert gone() is None
