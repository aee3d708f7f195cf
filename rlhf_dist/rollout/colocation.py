"""Engines that share their devices with the learner: they sleep while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_dist.cluster.fleet import Fleet


@contextmanager
def asleep(fleet: Fleet, *, timeout_s: float) -> Iterator[None]:
    """Inside the block all engines have given their device memory back; each wakes when it pulls its next weights."""
    calls = {name: worker.sleep.remote() for name, worker in fleet.ready.items()}
    fleet.watch.wait(calls, timeout_s=timeout_s, doing="going to sleep")
    yield
