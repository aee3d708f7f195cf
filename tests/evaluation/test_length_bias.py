"""Win rates at equal length, where it is known what length does."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from rlhf_dist.evaluation.length_bias import WEIGHT_OF_LENGTH, WEIGHT_OF_RATE, length_bias


def lengths(n: int, *, longer: float = 8.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of two policies, the first longer by so many tokens in the mean."""
    rng = np.random.default_rng(seed)
    return rng.normal(60 + longer, 8, n), rng.normal(60, 8, n)


def wins(a: np.ndarray, b: np.ndarray, *, skill: float, taste: float, seed: int = 0) -> np.ndarray:
    d = a - b
    chance = expit(skill + taste * np.tanh(d / d.std()))
    return (np.random.default_rng(seed + 1000).random(len(d)) < chance).astype(float)


def test_where_length_alone_decides_neither_wins_at_equal_length() -> None:
    a, b = lengths(2000)
    found = length_bias(a, b, (a > b).astype(float))
    assert np.mean(a > b) > 0.7
    assert found.longer_wins.mean == 1.0
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.controlled.low < 0.5 < found.controlled.high
    assert found.controlled.mean == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("skill", [-1.0, 0.0, 2.0])
def test_where_length_does_not_matter_the_controlled_rate_is_the_raw_one(skill: float) -> None:
    a, b = lengths(3000)
    labels = wins(a, b, skill=skill, taste=0.0)
    found = length_bias(a, b, labels)
    assert found.controlled.mean == pytest.approx(np.mean(labels), abs=0.02)
    assert found.controlled.low < expit(skill) < found.controlled.high


def test_the_rate_is_that_of_a_logistic_regression_with_the_same_prior_data() -> None:
    """Each label as a win and a loss with what it says as their weights, and the ties of the prior as rows."""
    a, b = lengths(60)
    rng = np.random.default_rng(3)
    labels, weights = rng.choice([0.0, 0.3, 0.5, 1.0], 60), rng.uniform(0.1, 3, 60)
    d = a - b
    x = np.concatenate([np.stack([np.ones(60), np.tanh(d / d.std())], 1), np.eye(2)])
    effective = weights * weights.sum() / (weights**2).sum()
    y, w = np.append(labels, [0.5, 0.5]), np.append(effective, [WEIGHT_OF_RATE, WEIGHT_OF_LENGTH])
    fitted = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([x, x]), [1] * 62 + [0] * 62, np.concatenate([w * y, w * (1 - y)])
    )
    assert logit(length_bias(a, b, labels, weights).controlled.mean) == pytest.approx(fitted.coef_[0][0], abs=1e-4)


def test_the_interval_holds_the_true_rate() -> None:
    for n, skill, taste in ((20, 0.5, 1.0), (60, 0.5, 2.0), (200, 0.0, 2.0)):
        covered = 0
        for seed in range(150):
            a, b = lengths(n, seed=seed)
            found = length_bias(a, b, wins(a, b, skill=skill, taste=taste, seed=seed)).controlled
            covered += found.low <= expit(skill) <= found.high
        assert covered >= 137, (n, skill, taste)


def test_ties_and_divided_votes_count_by_half() -> None:
    a, b = lengths(400)
    assert length_bias(a, b, np.full(400, 0.5)).controlled.mean == pytest.approx(0.5)
    assert math.isnan(length_bias(a, b, np.full(400, 0.5)).longer_wins.mean)
    divided = length_bias(a, b, np.full(400, 0.8))
    assert divided.controlled.mean == pytest.approx(0.8, abs=0.02)
    assert divided.longer_wins.mean == pytest.approx(np.mean(a > b))


def test_whatever_is_alike_leaves_numbers() -> None:
    for labels in ([1.0], [1.0] * 6, [0.0] * 6):
        n = len(labels)
        same, constant = length_bias([5] * n, [5] * n, labels), length_bias([9] * n, [5] * n, labels)
        for found in (same, constant):
            assert found.controlled.mean == pytest.approx(labels[0], abs=0.1)
            assert 0 <= found.controlled.low < found.controlled.high <= 1
        assert math.isnan(same.longer_wins.mean)
        assert constant.longer_wins.mean == labels[0]
    six = length_bias([5, 9, 4, 8, 6, 7], [6] * 6, [1.0] * 6).controlled
    assert six.low < 0.7, "six wins are no certainty"
    assert math.isnan(length_bias([], [], []).controlled.mean)


def test_sides_mirror_and_what_has_no_weight_does_not_count() -> None:
    a, b = lengths(50)
    labels = wins(a, b, skill=0.5, taste=1.0)
    there, back = length_bias(a, b, labels), length_bias(b, a, 1 - labels)
    assert there.controlled.mean == pytest.approx(1 - back.controlled.mean, abs=1e-6)
    assert there.longer_wins.mean == pytest.approx(back.longer_wins.mean)
    assert there.difference == pytest.approx(-back.difference)
    half = length_bias(a, b, labels, np.arange(50) < 25)
    d, fewer = (a - b)[:25], length_bias(a[:25], b[:25], labels[:25])
    assert (half.longer_wins, half.difference) == (fewer.longer_wins, pytest.approx(d.mean()))
    assert half.controlled.mean == pytest.approx(fewer.controlled.mean, abs=1e-6)
