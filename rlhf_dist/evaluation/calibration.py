"""Whether predicted preferences mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Predictions between two bounds, and what people said."""

    predicted: float
    """Mean predicted probability."""
    observed: float
    """Mean label."""
    count: int


def reliability_bins(predicted: Sequence[float], labels: Sequence[float], *, bins: int = 10) -> list[Bin]:
    """Predictions in bins of equal width from 0 to 1, empty ones left out.

    Args:
        predicted: P(first answer is better).
        labels: what people said, from 0 to 1.
        bins: how many.
    """
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    assert p.shape == y.shape, (p.shape, y.shape)
    number = np.minimum((p * bins).astype(int), bins - 1)
    chosen = [number == each for each in range(bins)]
    return [Bin(float(p[own].mean()), float(y[own].mean()), int(own.sum())) for own in chosen if own.any()]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of prediction and label over the bins, weighted by count (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.predicted - each.observed) for each in bins) / total if total else float("nan")
