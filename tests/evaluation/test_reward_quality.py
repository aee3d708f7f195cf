import math
import random

import pytest

from rlhf_dist.data.feedback import Judged
from rlhf_dist.evaluation.calibration import expected_calibration_error, reliability_bins
from rlhf_dist.evaluation.reward_quality import quality, quality_by


def pair(label: float, source: str = "s") -> Judged:
    return Judged("comparisons", "p", ("x", "y"), label, source, "here")


def test_calibration_error_is_the_weighted_distance_of_bins() -> None:
    bins = reliability_bins([0.95, 0.95, 0.15, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 0.0])
    assert [each.count for each in bins] == [1, 1, 3]
    expected = (0.0 + 0.15 + 3 * abs((0.95 + 0.95 + 1.0) / 3 - 2 / 3)) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_honest_predictions_are_calibrated_and_sure_ones_are_not() -> None:
    rng = random.Random(0)
    honest = [rng.random() for _ in range(20000)]
    said = [float(rng.random() < p) for p in honest]
    assert expected_calibration_error(reliability_bins(honest, said)) < 0.02
    sure = [0.999 if p > 0.5 else 0.001 for p in honest]
    assert expected_calibration_error(reliability_bins(sure, said)) > 0.2


def test_accuracy_counts_choices_ties_and_a_rankings_pairs() -> None:
    found = quality([pair(1.0), pair(0.0), pair(1.0), pair(0.5)], [[2, 1], [2, 1], [1, 1], [3, 0]], compare_scale=1.0)
    assert found.accuracy == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    ranking = Judged("rankings", "p", ("x", "y", "z"), 1.0, "s", "here")
    assert quality([ranking], [[3.0, 1.0, 2.0]], compare_scale=1.0).accuracy == pytest.approx(2 / 3)
    score = Judged("scores", "p", ("x",), 0.75, "s", "here")
    only = quality([score], [[0.0]], compare_scale=1.0)
    assert only.score_error == pytest.approx(0.25)
    assert math.isnan(only.accuracy)


def test_a_ranking_that_is_right_as_often_as_predicted_is_calibrated() -> None:
    rng = random.Random(0)
    gap = math.log(0.7 / 0.3)
    judged, rewards = [], []
    for _ in range(4000):
        answers, right = rng.sample(["x", "y"], 2), rng.random() < 0.7
        judged.append(Judged("rankings", "p", tuple(answers), 1.0, "s", "here"))
        rewards.append([gap, 0.0] if right else [0.0, gap])
    assert quality(judged, rewards, compare_scale=1.0).ece < 0.03


def test_sources_are_told_apart() -> None:
    judged = [pair(1.0), pair(1.0), pair(0.0)]
    found = quality_by(["good", "good", "bad"], judged, [[1, 0]] * 3, compare_scale=1.0)
    assert (found["good"].accuracy, found["bad"].accuracy) == (1.0, 0.0)
