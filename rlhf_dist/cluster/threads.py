"""Threads of an actor that computes on CPUs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

SHORT_SPIN = "1000"
"""libgomp's threads wait for each other by spinning, 300,000 rounds by default. Beside another busy process that turns every
wait for a preempted thread into a wasted time slice; after 1,000 they sleep (benchmarks/iteration.py, `busy_over_quiet`)."""


def device_of_this_process(threads: int) -> str:
    """`cuda` where this process has a GPU; else `cpu`, and torch computes with so many threads."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    torch.set_num_threads(threads)
    return "cpu"


def helpers(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone, beside the caller's, which goes on with as many as it has."""
    import torch

    own, begun = torch.get_num_threads(), Barrier(count)

    def alone() -> None:
        torch.get_num_threads()  # a thread's first call into torch takes the number that was set last, anywhere
        torch.set_num_threads(1)

    threads = ThreadPoolExecutor(count, initializer=alone)
    # All of them begin now: what they set is the number for threads that are yet to come, until it is set again.
    for _ in threads.map(lambda _: begun.wait(), range(count)):
        pass
    torch.set_num_threads(own)
    return threads


def environment_of(threads: int) -> dict[str, str]:
    """Variables of a process that computes with so many threads; the user's own GOMP_SPINCOUNT wins."""
    found = {"OMP_NUM_THREADS": str(threads)}
    if threads > 1:
        found["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", SHORT_SPIN)
    return found
