"""Annotators whose reliability is known, and few votes of them."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene

from rlhf_dist.feedback.dawid_skene import CLOSE, RIGHT, WRONG, dawid_skene_arrays

PEOPLE = (0.8, 0.75, 0.7, 0.65)


class Simulated(NamedTuple):
    task: np.ndarray
    worker: np.ndarray
    first_better: np.ndarray
    truth: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        return np.bincount(self.task, self.first_better) / np.bincount(self.task)


def simulated(people: tuple[float, ...], *, tasks: int, fewest: int, most: int, seed: int) -> Simulated:
    rng = np.random.default_rng(seed)
    truth = rng.random(tasks) < 0.5
    asked = [rng.permutation(len(people))[: rng.integers(fewest, most + 1)] for _ in range(tasks)]
    task = np.repeat(np.arange(tasks), [len(each) for each in asked])
    worker = np.concatenate(asked)
    right = rng.random(len(task)) < np.array(people)[worker]
    return Simulated(task, worker, right == truth[task], truth)


def hits(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How right each verdict is, where an open one counts half."""
    return np.where(np.isclose(p, 0.5), 0.5, (p > 0.5) == truth)


def test_with_plenty_of_votes_it_is_the_unsmoothed_model_of_crowd_kit() -> None:
    made = simulated((0.9, 0.8, 0.8, 0.7, 0.6, 0.55), tasks=10_000, fewest=6, most=6, seed=0)
    posterior, reliability = dawid_skene_arrays(*made[:3])
    columns = {"task": made.task, "worker": made.worker, "label": np.where(made.first_better, "a", "b")}
    expected = DawidSkene(n_iter=200).fit(pd.DataFrame(columns))
    np.testing.assert_allclose(posterior, expected.probas_["a"].sort_index(), atol=0.1)
    assert np.mean(np.abs(posterior - expected.probas_["a"].sort_index())) < 0.01
    confusion = np.array([[expected.errors_.loc[(worker, side), side] for side in "ab"] for worker in range(6)])
    np.testing.assert_allclose(reliability, confusion.mean(1), atol=0.01)


def test_few_votes_of_decent_people_overturn_nobody_and_are_no_worse_than_the_majority() -> None:
    """Forty tasks, one to three votes of four people each: without smoothing, one in nine unanimous pairs is turned round."""
    overturned = unanimous = 0
    ours, majority = [], []
    for seed in range(100):
        made = simulated(PEOPLE, tasks=40, fewest=1, most=3, seed=seed)
        posterior, _ = dawid_skene_arrays(*made[:3])
        alike = np.isin(made.shares, (0, 1))
        unanimous += alike.sum()
        overturned += (alike & ((posterior > 0.5) != (made.shares > 0.5))).sum()
        ours.append(hits(posterior, made.truth))
        majority.append(hits(made.shares, made.truth))
    assert overturned < 0.002 * unanimous
    assert np.mean(ours) > np.mean(majority) - 0.002


def test_it_beats_the_majority_where_some_are_careless() -> None:
    made = [simulated((0.9, 0.9, 0.5, 0.3), tasks=40, fewest=2, most=4, seed=seed) for seed in range(50)]
    ours = np.mean([hits(dawid_skene_arrays(*each[:3])[0], each.truth) for each in made])
    assert ours > np.mean([hits(each.shares, each.truth) for each in made]) + 0.1


def test_it_is_a_maximum_of_the_likelihood_with_its_prior() -> None:
    made = simulated(PEOPLE, tasks=60, fewest=2, most=4, seed=1)
    _, found = dawid_skene_arrays(*made[:3])

    def log_posterior(reliability: np.ndarray) -> float:
        prior = RIGHT * np.log(reliability) + WRONG * np.log(1 - reliability)
        right = reliability[made.worker]
        sides = [np.log(np.where(made.first_better == side, right, 1 - right)) for side in (True, False)]
        return float(prior.sum() + np.logaddexp(*(np.bincount(made.task, each) for each in sides)).sum())

    best = log_posterior(found)
    for worker in range(len(PEOPLE)):
        for step in (-1e-3, 1e-3):
            assert log_posterior(found + step * (np.arange(len(PEOPLE)) == worker)) < best


def test_lone_votes_and_ties_tell_nothing_of_anybody() -> None:
    posterior, reliability = dawid_skene_arrays(np.arange(3), np.array([0, 0, 1]), np.array([1.0, 0.0, 0.5]))
    granted = RIGHT / (RIGHT + WRONG)
    assert reliability == pytest.approx([granted, granted], abs=10 * CLOSE)
    assert posterior == pytest.approx([granted, 1 - granted, 0.5], abs=10 * CLOSE)


def test_votes_in_another_order_are_the_same_to_the_last_bit_and_sides_mirror() -> None:
    made = simulated(PEOPLE, tasks=50, fewest=1, most=4, seed=2)
    order = np.random.default_rng(0).permutation(len(made.task))
    posterior, reliability = dawid_skene_arrays(*made[:3])
    again = dawid_skene_arrays(*(each[order] for each in made[:3]))
    assert np.array_equal(posterior, again[0])
    assert np.array_equal(reliability, again[1])
    mirrored, _ = dawid_skene_arrays(made.task, made.worker, ~made.first_better)
    np.testing.assert_allclose(mirrored, 1 - posterior, atol=1e-9)
