"""Schedules of faults: from the seed alone, all kinds alike, never on top of each other."""

from collections import Counter
from itertools import pairwise
from typing import get_args

from rlhf_dist.chaos.schedule import FIRST, SETTLED, iterations, schedule
from rlhf_dist.config.chaos import FaultKind

KINDS = get_args(FaultKind)


def test_the_seed_decides_and_every_kind_comes_as_often_as_the_others() -> None:
    faults = schedule(KINDS, 100, gap=4, seed=1)
    assert faults == schedule(KINDS, 100, gap=4, seed=1)
    assert faults != schedule(KINDS, 100, gap=4, seed=2)
    counts = Counter(fault.kind for fault in faults)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_run_gets_over_one_fault_before_the_next() -> None:
    faults = schedule(KINDS, 50, gap=3, seed=0)
    assert faults[0].iteration >= FIRST
    assert all(later.iteration - earlier.iteration >= 1 for earlier, later in pairwise(faults))
    assert faults[-1].iteration + SETTLED < iterations(50, gap=3)


def test_what_the_run_can_mend_must_not_end_it() -> None:
    may_end = {fault.kind: fault.may_end for fault in schedule(KINDS, len(KINDS), gap=4, seed=0)}
    assert (
        may_end["kill learner"]
        == may_end["stop store"]
        == may_end["kill raylet"]
        == may_end["server busy"]
        == frozenset()
    )
    assert may_end["kill driver"] == may_end["flip checkpoint"] == {-9}
    assert may_end["end driver"] == {143}
    assert may_end["server nan"] == {3}
