"""Scorers that share their devices with learners or engines: they give them back between two phases of scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rlhf_dist.cluster.dealing import everyone
from rlhf_dist.cluster.fleet import Fleet


@contextmanager
def at_rest(scorers: Iterable[Fleet], *, timeout_s: float) -> Iterator[None]:
    """Inside the block no scorer has anything on its device, or scores; after it all of them do again.

    One that takes the place of a lost one meanwhile comes up awake.
    """
    fleets = [*scorers]
    rest(fleets, timeout_s=timeout_s)
    yield
    wake(fleets, timeout_s=timeout_s)


def rest(scorers: Iterable[Fleet], *, timeout_s: float) -> None:
    """Have all workers that are ready give their devices' memory back, each after the chunk that it is at."""
    for fleet in scorers:
        everyone(fleet, lambda worker: worker.rest.remote(), timeout_s=timeout_s, doing="moving its model to the host")


def wake(scorers: Iterable[Fleet], *, timeout_s: float) -> None:
    """Have all workers that are ready take their models back to their devices, and score."""
    for fleet in scorers:
        everyone(
            fleet, lambda worker: worker.wake.remote(), timeout_s=timeout_s, doing="moving its model to the device"
        )
