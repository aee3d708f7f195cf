"""How far annotators agree, beyond what chance would give."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_dist.data.feedback import Judged


@dataclass(frozen=True)
class Agreement:
    """Of several annotators on comparisons."""

    alpha: float
    """Krippendorff's alpha (2004), nominal: 1 is full agreement, 0 chance; NaN where all said the same."""
    kappa: dict[tuple[str, str], float]
    """Cohen's kappa (1960) of each pair of annotators with shared questions; NaN where both said one thing only."""
    shared: int
    """Questions that two or more judged."""


def agreement(votes: Sequence[Judged]) -> Agreement | None:
    """Agreement on the questions that two or more annotators judged; None where there are none."""
    said: dict[Any, dict[str, str]] = defaultdict(dict)
    for one in votes:
        said[one.task][one.annotator] = "a" if one.label > 0.5 else "b" if one.label < 0.5 else "tie"
    shared = [votes for votes in said.values() if len(votes) > 1]
    if not shared:
        return None
    names = sorted({name for votes in shared for name in votes})
    return Agreement(_alpha(shared, names), _kappas(shared, names), len(shared))


def _alpha(shared: Sequence[dict[str, str]], names: Sequence[str]) -> float:
    import krippendorff

    codes = {"a": 0.0, "b": 1.0, "tie": 2.0}
    data = np.array([[codes[votes[name]] if name in votes else np.nan for votes in shared] for name in names])
    if len(set(data[~np.isnan(data)])) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="nominal"))


def _kappas(shared: Sequence[dict[str, str]], names: Sequence[str]) -> dict[tuple[str, str], float]:
    from sklearn.metrics import cohen_kappa_score

    found = {}
    for first, second in combinations(names, 2):
        both = [(votes[first], votes[second]) for votes in shared if first in votes and second in votes]
        if both:
            one_word = len({word for pair in both for word in pair}) < 2
            found[first, second] = math.nan if one_word else float(cohen_kappa_score(*zip(*both, strict=True)))
    return found
