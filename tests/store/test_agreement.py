"""How far an engine is from a learner, by hand; and which sample tells how it decodes."""

import math

import pytest

from rlhf_dist.records import RowKey, Sample
from rlhf_dist.store.agreement import agreement, longest_sample
from rlhf_dist.store.row import rollout_batch


def test_distances_are_those_of_the_definition() -> None:
    found = agreement([-1.0, -2.0], [-1.0 + math.log(2), -2.0])
    assert found.diff == pytest.approx(math.log(2) / 2)
    assert found.k3_max == pytest.approx(1 - math.log(2)), "(r - 1) - log r with r = 2"
    assert found.k3 == pytest.approx((1 - math.log(2)) / 2)
    assert found.facts("probe").keys() == {"probe_diff", "probe_k3", "probe_k3_max"}
    assert found.within(0.35)
    assert not found.within(0.34)


def test_no_number_is_within_no_tolerance() -> None:
    assert not agreement([float("nan")], [-1.0]).within(1e9)


def test_the_longest_sample_of_the_learners_own_version_tells_how_engines_decode() -> None:
    def sample(number: int, answer: int, versions: tuple[tuple[int, int], ...]) -> Sample:
        log_probs = tuple(-0.1 * (place + 1) for place in range(answer))
        return Sample(RowKey(3, number, 0), (9, 8), tuple(range(answer)), log_probs, "stop", versions)

    samples = [
        sample(0, 2, ((3, 2),)),
        sample(1, 4, ((3, 4),)),
        sample(2, 6, ((2, 6),)),
        sample(3, 7, ((2, 3), (3, 4))),
    ]
    found = longest_sample(rollout_batch(samples), 3)
    assert found is not None
    assert found.tokens == (9, 8, 0, 1, 2, 3)
    assert found.predicting == (1, 2, 3, 4)
    assert found.compared([-5.0, -0.1, -0.2, -0.3, -0.5]).diff == pytest.approx(0.1 / 4, abs=1e-6)
    assert longest_sample(rollout_batch(samples), 4) is None
