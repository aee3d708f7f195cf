"""Win rates and means with intervals, by bootstrap over prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile interval (Efron and Tibshirani 1993, chapter 13)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """How often one is preferred over another, ties counting half."""

    rate: Interval
    wins: int
    ties: int
    losses: int


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % interval of independent values, e.g. one per prompt; of one value the bounds are NaN, of none all is.

    Args:
        values: at least one.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        mean = float(array.mean()) if len(array) else math.nan
        return Interval(mean, math.nan, math.nan)
    found = bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(float(array.mean()), float(found.low), float(found.high))


def wilson(rate: float, n: int) -> Interval:
    """95 % interval of a rate over `n` trials (Wilson 1927), which is also right where all went alike and nothing varies.

    Wins are whole numbers there; between two of them, as ties make, the mean of both intervals.
    """
    from scipy.stats import binomtest

    wins = round(rate * n, 6)
    both = [binomtest(whole, n).proportion_ci(method="wilson") for whole in (math.floor(wins), math.ceil(wins))]
    return Interval(rate, float(np.mean([each.low for each in both])), float(np.mean([each.high for each in both])))


def rate_interval(labels: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of values between 0 and 1, one per prompt, with an interval that is also right where all are alike."""
    return interval(labels, seed=seed) if len(set(labels)) != 1 else wilson(labels[0], len(labels))


def win_rate(labels: Sequence[float], *, seed: int = 0) -> WinRate:
    """Of one value per prompt: 1 for a win, 0 for a loss, between for a tie or a divided vote."""
    return WinRate(
        rate_interval(labels, seed=seed),
        wins=sum(label > 0.5 for label in labels),
        ties=sum(label == 0.5 for label in labels),
        losses=sum(label < 0.5 for label in labels),
    )
