"""Strengths of answers against choix's, and annotators' reliabilities against the formula."""

import math

import choix
import numpy as np
import pytest
from scipy.special import expit

from rlhf_dist.feedback import crowd_bradley_terry as model
from rlhf_dist.feedback.crowd_bradley_terry import (
    RELIABILITY_LOGIT,
    RELIABILITY_STD,
    STRENGTH_STD,
    crowd_bradley_terry,
)


def test_bradley_terry_is_the_optimum_of_its_formula() -> None:
    """One vote by a reliable annotator: the derivative by the gap vanishes where the model says it does."""
    better, reliability = crowd_bradley_terry(["x"], ["y"], [True], ["ann"])
    p, q = float(better[0]), reliability["ann"]
    gap, skill = math.log(p / (1 - p)), math.log(q / (1 - q))
    chance = q * p + (1 - q) * (1 - p)
    assert (2 * q - 1) * p * (1 - p) / chance == pytest.approx(gap / 2 / STRENGTH_STD**2, abs=1e-4)
    assert (2 * p - 1) * q * (1 - q) / chance == pytest.approx(
        (skill - RELIABILITY_LOGIT) / RELIABILITY_STD**2, abs=1e-4
    )


@pytest.mark.parametrize("answers", [2, 5, 12])
def test_of_a_reliable_annotator_it_is_the_plain_model(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one who is known never to err: choix's maximum a posteriori, whose penalty is alpha times the sum of squares."""
    monkeypatch.setattr(model, "RELIABILITY_LOGIT", 30.0)
    monkeypatch.setattr(model, "RELIABILITY_STD", 0.1)
    rng = np.random.default_rng(answers)
    strengths = rng.normal(0, 1.5, answers)
    pairs = [rng.choice(answers, 2, replace=False) for _ in range(20 * answers)]
    chosen = [bool(rng.random() < expit(strengths[a] - strengths[b])) for a, b in pairs]
    first, second = ([int(pair[side]) for pair in pairs] for side in (0, 1))
    better, _ = crowd_bradley_terry(first, second, chosen, ["ann"] * len(pairs))
    data = [(a, b) if won else (b, a) for a, b, won in zip(first, second, chosen, strict=True)]
    theirs = choix.opt_pairwise(answers, data, alpha=1 / (2 * STRENGTH_STD**2), tol=1e-9)
    np.testing.assert_allclose(better, expit(theirs[first] - theirs[second]), atol=1e-3)
