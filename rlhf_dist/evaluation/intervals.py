"""Win rates and means with intervals, by bootstrap over prompts."""

from __future__ import annotations

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

    @property
    def decided(self) -> bool:
        """Whether the interval excludes an even match."""
        return not self.rate.low <= 0.5 <= self.rate.high


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % interval of independent values, e.g. one per prompt; NaN of none.

    Args:
        values: at least one.
        seed: of the resampling.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Interval(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(1), [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def win_rate(labels: Sequence[float], *, seed: int = 0) -> WinRate:
    """Of one value per prompt: 1 for a win, 0 for a loss, between for a tie or a divided vote."""
    return WinRate(
        interval(labels, seed=seed),
        wins=sum(label > 0.5 for label in labels),
        ties=sum(label == 0.5 for label in labels),
        losses=sum(label < 0.5 for label in labels),
    )
