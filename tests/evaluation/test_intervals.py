"""Intervals against scipy's, and how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, t

from rlhf_dist.evaluation.intervals import RESAMPLES, interval, rate_interval, win_rate

LABELS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]), min_size=1, max_size=40)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = [
        (found := interval(rng.normal(1.0, 2.0, 60).tolist(), seed=n)).low <= 1.0 <= found.high for n in range(200)
    ]
    assert 0.90 <= np.mean(covered) <= 0.985
    one = interval([0.5] * 10)
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("levels", [3, 40, 400])
def test_a_mean_is_bounded_by_the_percentile_bootstrap_of_scipy_however_few_values_are_distinct(levels: int) -> None:
    values = np.random.default_rng(levels).integers(0, levels, 400).astype(float)
    found = interval(values.tolist(), seed=1)
    theirs = bootstrap((values,), np.mean, n_resamples=4 * RESAMPLES, batch=500, method="percentile", rng=2)
    error = 3 * 2.4 * values.std() / math.sqrt(len(values)) / math.sqrt(RESAMPLES)  # of a 2.5 % quantile, three times
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=error)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=error)


def test_what_one_value_cannot_say_is_no_number() -> None:
    found = interval([0.25])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(interval([]).mean)
    assert math.isnan(win_rate([]).rate.mean)
    assert not win_rate([]).decided


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 4), (4, 4), (5, 9), (80, 100), (1000, 1000)])
def test_wins_and_losses_alone_have_clopper_and_pearsons_interval(wins: int, n: int) -> None:
    theirs = binomtest(wins, n).proportion_ci(method="exact")
    labels = [1.0] * wins + [0.0] * (n - wins)
    for found in (win_rate(labels).rate, rate_interval(labels)):
        assert (found.mean, found.low, found.high) == pytest.approx((wins / n, theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("wins", range(1, 10))
@pytest.mark.parametrize("ties", [0, 3, 46])
def test_a_few_wins_decide_when_the_sign_test_does(wins: int, ties: int) -> None:
    found = win_rate([1.0] * wins + [0.5] * ties)
    assert found.decided == (binomtest(wins, wins).pvalue < 0.05)
    assert (found.wins, found.ties, found.losses) == (wins, ties, 0)


def test_even_matches_are_even_and_clear_ones_are_decided() -> None:
    for ties in (1, 2, 3, 8):
        told = win_rate([0.5] * ties).rate
        assert told.low == pytest.approx(1 - told.high)
        assert told.high > 0.6
    assert not win_rate([1.0, 0.0] * 50).decided
    clear = win_rate([1.0] * 80 + [0.5] * 10 + [0.0] * 10)
    assert clear.decided
    assert (clear.wins, clear.ties, clear.losses, clear.rate.mean) == (80, 10, 10, pytest.approx(0.85))


@pytest.mark.parametrize("times", [1, 3, 25])
def test_values_near_each_other_have_students_interval(times: int) -> None:
    values = [0.7, 0.72, 0.75, 0.7] * times
    found, n = rate_interval(values), len(values)
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.975, n - 1) * np.std(values) / math.sqrt(n), rel=0.05)


SHARES = [(0.5, 0.0), (0.35, 0.3), (0.2, 0.6), (0.7, 0.1), (0.9, 0.0), (0.8, 0.15)]


@pytest.mark.parametrize("prompts", [4, 5, 8, 10, 20])
def test_the_interval_holds_the_true_rate_however_few_prompts_there_are(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    for wins, ties in SHARES:
        covered = 0
        for _ in range(200):
            found = win_rate(rng.choice([1.0, 0.5, 0.0], prompts, p=[wins, ties, 1 - wins - ties]).tolist()).rate
            covered += found.low <= wins + ties / 2 <= found.high
        assert covered >= 186, (wins, ties)


@given(LABELS)
def test_sides_mirror(labels: list[float]) -> None:
    there, back = win_rate(labels), win_rate([1 - label for label in labels])
    assert there.rate.low == pytest.approx(1 - back.rate.high, abs=1e-9)
    assert 0 <= there.rate.low <= there.rate.mean + 1e-12
    assert there.rate.mean <= there.rate.high + 1e-12 <= 1 + 1e-9
    assert there.decided == back.decided


@given(LABELS, st.floats(0.01, 100))
def test_weights_that_are_alike_change_nothing_and_none_takes_part_without_one(
    labels: list[float], weight: float
) -> None:
    plain, weighed = win_rate(labels).rate, win_rate(labels, [weight] * len(labels)).rate
    assert (weighed.mean, weighed.low, weighed.high) == pytest.approx((plain.mean, plain.low, plain.high), abs=1e-9)
    others = win_rate([*labels, 1.0, 0.0, 0.5], [weight] * len(labels) + [0.0] * 3)
    assert (others.rate.low, others.rate.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_a_weighted_rate_is_the_weighted_mean_and_its_interval_holds_the_truth() -> None:
    assert win_rate([1.0, 0.0], [3.0, 1.0]).rate.mean == 0.75
    rng = np.random.default_rng(0)
    covered, wider = 0, 0
    for _ in range(300):
        labels, weights = rng.binomial(1, 0.7, 40).astype(float), rng.exponential(size=40)
        found = win_rate(labels.tolist(), weights.tolist()).rate
        covered += found.low <= 0.7 <= found.high
        plain = win_rate(labels.tolist()).rate
        wider += found.high - found.low > plain.high - plain.low
    assert covered >= 279
    assert wider > 290, "uneven weights are worth fewer prompts"
