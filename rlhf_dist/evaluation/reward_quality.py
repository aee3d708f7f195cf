"""How well a reward model predicts judgements that it was not trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf_dist.data.feedback import Judged
from rlhf_dist.evaluation.calibration import Bin, expected_calibration_error, reliability_bins


@dataclass(frozen=True)
class Quality:
    """Of a reward model on some judgements."""

    comparisons: int
    accuracy: float
    """Mean over comparisons of how right its choice is; NaN without comparisons."""
    ece: float
    """Expected calibration error of its predicted preferences; NaN without comparisons."""
    bins: tuple[Bin, ...]
    score_error: float
    """Mean absolute error of sigmoid(r) on scores and comments; NaN without any."""


def quality(judged: Sequence[Judged], rewards: Sequence[Sequence[float]], *, compare_scale: float) -> Quality:
    """Compare predictions with what people said.

    Args:
        judged: held-out judgements; a ranking counts as its pairs.
        rewards: of each judgement's answers, in order, unnormalised.
        compare_scale: P(a over b) = sigmoid(compare_scale (r_a - r_b)).
    """
    predicted, labels, errors = [], [], []
    for one, found in zip(judged, rewards, strict=True):
        if one.kind in ("scores", "comments"):
            errors.append(abs(_sigmoid(found[0]) - one.label))
            continue
        for first, second in combinations(range(len(found)), 2):
            # A ranking lists the better one first; in the order of the texts, either may be, as calibration needs.
            flip = one.kind == "rankings" and one.answers[first] > one.answers[second]
            gap = found[second] - found[first] if flip else found[first] - found[second]
            predicted.append(_sigmoid(compare_scale * gap))
            labels.append(1 - one.label if flip else one.label)
    bins = reliability_bins(predicted, labels)
    hits = [_hit(p, y) for p, y in zip(predicted, labels, strict=True)]
    return Quality(
        comparisons=len(labels),
        accuracy=float(np.mean(hits)) if hits else float("nan"),
        ece=expected_calibration_error(bins),
        bins=tuple(bins),
        score_error=float(np.mean(errors)) if errors else float("nan"),
    )


def quality_by(
    names: Sequence[str], judged: Sequence[Judged], rewards: Sequence[Sequence[float]], *, compare_scale: float
) -> Mapping[str, Quality]:
    """The same for each source, or annotator, that `names` gives the judgements."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        groups[name].append(number)
    return {
        name: quality([judged[i] for i in own], [rewards[i] for i in own], compare_scale=compare_scale)
        for name, own in sorted(groups.items())
    }


def _hit(predicted: float, label: float) -> float:
    return 0.5 if predicted == 0.5 else label if predicted > 0.5 else 1 - label


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(x, -500, 500))))
