"""Whether a judge prefers the longer answer, and how often one wins where answers are as long as the other's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_dist.evaluation.intervals import Interval, clopper_pearson, rate_interval

WEIGHT_OF_RATE, WEIGHT_OF_LENGTH = 0.1, 1.0
"""Of the ties that are granted beforehand, one at equal length and one to length alone: neither coefficient is infinite then."""


@dataclass(frozen=True)
class LengthBias:
    """Of comparisons of a first with a second."""

    longer_wins: Interval
    """Share of the decided comparisons of answers of different length that the longer one wins; NaN of none."""
    difference: float
    """Mean length of the first less that of the second."""
    controlled: Interval
    """The first's win rate at equal length."""


def length_bias(
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
) -> LengthBias:
    """What a win rate owes to length (Dubois et al. 2024, arXiv:2404.04475, section 3, without its terms for each prompt).

    A logistic regression P(first wins) = sigmoid(theta + phi tanh(d / std(d))) on the difference d of lengths, of which
    sigmoid(theta) is the win rate at d = 0. Log-F priors keep it finite where length decides all (Greenland and Mansournia 2015,
    "Penalization, bias reduction, and default priors in logistic and related categorical and survival regressions"): a tie of
    weight `WEIGHT_OF_RATE` at d = 0, and one of weight `WEIGHT_OF_LENGTH` that only phi explains. The interval is
    `clopper_pearson`'s over as many trials as would leave theta its variance, 1 / (p (1 - p) Var(theta)); with ties it is rather
    too wide than too narrow.

    Args:
        lengths_a: of the first of each two answers, in any unit. [comparisons]
        lengths_b: of the second. [comparisons]
        labels: P(first wins), from 0 to 1; ties and divided votes lie between. [comparisons]
        weights: of each, at least 0; a common factor does not matter. None: all the same. [comparisons]
    """
    y = np.asarray(labels, dtype=np.float64)
    d = np.asarray(lengths_a, dtype=np.float64) - np.asarray(lengths_b, dtype=np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    assert y.shape == d.shape == w.shape, (y.shape, d.shape, w.shape)
    y, d, w = (each[w > 0] for each in (y, d, w))
    if not len(y):
        nothing = Interval(math.nan, math.nan, math.nan)
        return LengthBias(nothing, math.nan, nothing)
    for_longer = np.where(d > 0, y, 1 - y)
    longer = rate_interval((for_longer > 0.5).tolist(), (w * (d != 0) * np.abs(2 * y - 1)).tolist())
    w = w * w.sum() / (w @ w)  # as many comparisons as they are worth (Kish 1965)
    return LengthBias(longer, float(np.average(d, weights=w)), _at_equal_length(d, y, w))


def _at_equal_length(d: np.ndarray[Any, Any], y: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> Interval:
    from scipy.optimize import minimize
    from scipy.special import expit

    x = np.stack([np.ones(len(d)), np.tanh(d / (float(np.std(d)) or 1.0))], axis=1)
    x, y, w = np.concatenate([x, np.eye(2)]), np.append(y, [0.5, 0.5]), np.append(w, [WEIGHT_OF_RATE, WEIGHT_OF_LENGTH])

    def loss(beta: np.ndarray[Any, Any]) -> float:
        return float(w @ (np.logaddexp(0, x @ beta) - y * (x @ beta)))

    def gradient(beta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        slope: np.ndarray[Any, Any] = x.T @ (w * (expit(x @ beta) - y))
        return slope

    def information(beta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        p = expit(x @ beta)
        found: np.ndarray[Any, Any] = (x * (w * p * (1 - p))[:, None]).T @ x
        return found

    beta = minimize(loss, np.zeros(2), method="trust-exact", jac=gradient, hess=information).x
    p, variance = float(expit(beta[0])), float(np.linalg.inv(information(beta))[0, 0])
    return clopper_pearson(p, 1 / (p * (1 - p) * variance))
