"""Engines that share their devices with the learner: they sleep while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_dist.cluster.dealing import everyone
from rlhf_dist.cluster.fleet import Fleet


@contextmanager
def asleep(fleet: Fleet, *, timeout_s: float) -> Iterator[None]:
    """Inside the block all engines have given their device memory back; each wakes when it pulls its next weights."""
    everyone(fleet, lambda worker: worker.sleep.remote(), timeout_s=timeout_s, doing="going to sleep")
    yield
