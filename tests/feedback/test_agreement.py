"""Agreement of annotators against the packages that define it."""

import math
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from rlhf_dist.feedback.agreement import agreement, cohen_kappas, krippendorff_alpha

NOTHING = -1


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """What some people said of some questions, with holes."""
    people, questions, codes = draw(st.integers(2, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    said = st.integers(NOTHING, codes - 1)
    return np.array(
        draw(st.lists(st.lists(said, min_size=questions, max_size=questions), min_size=people, max_size=people))
    )


def votes(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    worker, task = np.nonzero(table != NOTHING)
    return task, worker, table[worker, task]


@given(tables())
@settings(max_examples=200, deadline=None)
def test_alpha_is_krippendorffs_with_and_without_holes(table: np.ndarray) -> None:
    task, _, code = votes(table)
    shared = table[:, (table != NOTHING).sum(0) > 1]
    found = krippendorff_alpha(task, code)
    if len(set(shared[shared != NOTHING])) < 2:
        assert math.isnan(found)
        return
    data = np.where(table == NOTHING, np.nan, table)
    assert found == pytest.approx(krippendorff.alpha(data, level_of_measurement="nominal"), abs=1e-9)


@given(tables())
@settings(max_examples=200, deadline=None)
def test_kappas_of_all_pairs_are_cohens_of_each(table: np.ndarray) -> None:
    kappa, shared = cohen_kappas(*votes(table), len(table))
    for i, one in enumerate(table):
        for j, two in enumerate(table):
            both = (one != NOTHING) & (two != NOTHING)
            assert shared[i, j] == both.sum()
            if not both.any():
                assert math.isnan(kappa[i, j])
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = cohen_kappa_score(one[both], two[both])
            assert kappa[i, j] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_alpha_is_the_published_example_of_krippendorff() -> None:
    """Nominal data of two observers, ten units, alpha 0.095 (Krippendorff 2011, "Computing alpha-reliability", B)."""
    table = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]])
    found = agreement(*votes(table), ["m", "j"])
    assert found is not None
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


def test_agreement_is_one_for_the_same_votes_and_near_zero_for_guesses() -> None:
    same = agreement(*votes(np.array([[0, 1] * 25, [0, 1] * 25])), ["a", "b"])
    assert same is not None
    assert (same.alpha, same.kappa, same.shared) == (1.0, {("a", "b"): 1.0}, 50)
    guesses = agreement(*votes(np.random.default_rng(0).integers(0, 2, (2, 400))), ["a", "b"])
    assert guesses is not None
    assert abs(guesses.alpha) < 0.15
    assert agreement(*votes(np.array([[0, 0, NOTHING], [NOTHING, NOTHING, 1]])), ["a", "b"]) is None
    alike = agreement(*votes(np.zeros((2, 3), dtype=int)), ["a", "b"])
    assert alike is not None
    assert math.isnan(alike.alpha)
    assert math.isnan(alike.kappa["a", "b"])


def test_pairs_that_shared_nothing_have_no_kappa() -> None:
    found = agreement(*votes(np.array([[0, 1, NOTHING], [0, 1, 1], [NOTHING, NOTHING, 0]])), ["a", "b", "c"])
    assert found is not None
    assert found.kappa.keys() == {("a", "b"), ("b", "c")}
