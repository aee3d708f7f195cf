"""Aggregation and agreement on simulated annotators whose truth is known."""

import math
import random
from dataclasses import replace

import pytest

from rlhf_dist.data.feedback import Judged
from rlhf_dist.feedback.aggregate import aggregate, share
from rlhf_dist.feedback.agreement import agreement
from rlhf_dist.feedback.crowd_bradley_terry import (
    RELIABILITY_LOGIT,
    RELIABILITY_STD,
    STRENGTH_STD,
    crowd_bradley_terry,
)

CAREFUL = {"ann": 0.85, "bob": 0.85, "cat": 0.85}
CARELESS = {"dan": 0.5, "eve": 0.3}


def vote(task: object, label: float, annotator: str, *, kind: str = "comparisons") -> Judged:
    answers = ("x", "y") if kind == "comparisons" else ("x",)
    return Judged(kind, f"p{task}", answers, label, "s", "here", annotator)


def simulated(people: dict[str, float], *, tasks: int, seed: int) -> tuple[list[Judged], dict[str, float]]:
    rng = random.Random(seed)
    truth = {f"p{task}": float(rng.random() < 0.5) for task in range(tasks)}
    votes = [
        vote(task, truth[f"p{task}"] if rng.random() < right else 1 - truth[f"p{task}"], name)
        for task in range(tasks)
        for name, right in people.items()
    ]
    return votes, truth


def accuracy(judged: list[Judged], truth: dict[str, float]) -> float:
    return sum((one.label > 0.5) == (truth[one.prompt] > 0.5) for one in judged) / len(judged)


@pytest.mark.parametrize("seed", range(3))
def test_dawid_and_skene_beat_the_majority_and_name_the_careless(seed: int) -> None:
    votes, truth = simulated(CAREFUL | CARELESS, tasks=200, seed=seed)
    majority, skilled = aggregate(votes, "majority"), aggregate(votes, "dawid-skene")
    assert accuracy(skilled.judged, truth) > accuracy(majority.judged, truth) + 0.03
    assert {one.name for one in skilled.annotators if one.careless} == set(CARELESS)
    reliability = {one.name: one.reliability for one in skilled.annotators}
    for name, right in (CAREFUL | CARELESS).items():
        assert reliability[name] == pytest.approx(right, abs=0.1), name


def test_careful_annotators_are_not_suspected_and_bradley_terry_agrees_with_the_truth() -> None:
    votes, truth = simulated(CAREFUL, tasks=150, seed=3)
    for how in ("dawid-skene", "bradley-terry", "majority"):
        made = aggregate(votes, how)
        assert not [one for one in made.annotators if one.careless]
        assert accuracy(made.judged, truth) > 0.9, how


def test_bradley_terry_knows_reliabilities_and_believes_the_unanimous() -> None:
    votes, truth = simulated(CAREFUL | CARELESS, tasks=200, seed=0)
    assert accuracy(aggregate(votes, "bradley-terry").judged, truth) > accuracy(
        aggregate(votes, "majority").judged, truth
    )
    rows = [(one.prompt, *one.answers, one.label == 1.0, one.annotator) for one in votes]
    first, second = ([(row[0], row[side]) for row in rows] for side in (1, 2))
    _, reliability = crowd_bradley_terry(first, second, [row[3] for row in rows], [row[4] for row in rows])
    assert sorted(reliability, key=lambda name: reliability[name])[:2] == ["eve", "dan"]
    unanimous = [vote(task, float(task), name) for task in (0, 1) for name in "abc"]
    assert [one.label > 0.5 for one in aggregate(unanimous, "bradley-terry").judged] == [False, True]


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


def test_who_was_not_named_keeps_what_they_said_and_sources_their_own_votes() -> None:
    plain = [vote(0, 1.0, ""), vote(0, 0.0, ""), vote(1, 0.0, "")]
    other = [vote(1, 1.0, "ann"), vote(1, 1.0, "bob")]
    elsewhere = [replace(vote(1, 0.0, name), source="t") for name in ("ann", "bob")]
    for how in ("soft", "majority", "dawid-skene", "bradley-terry"):
        made = aggregate([*plain, *other], how).judged
        assert [one.label for one in made if one.prompt == "p0"] == [1.0, 0.0], how
        assert [one.label > 0.5 for one in made if one.prompt == "p1"] == [False, True], how
    assert [one.label for one in aggregate([*other, *elsewhere], "soft").judged] == [1.0, 0.0]


@pytest.mark.parametrize("how", ["soft", "majority", "dawid-skene", "bradley-terry"])
def test_ties_alone_are_a_tie(how: str) -> None:
    assert [one.label for one in aggregate([vote(0, 0.5, name) for name in "abc"], how).judged] == [0.5]


def test_soft_labels_are_shares_and_sides_do_not_matter() -> None:
    flipped = Judged("comparisons", "p0", ("y", "x"), 1.0, "s", "here", "cat")
    (one,) = aggregate([vote(0, 1.0, "ann"), vote(0, 1.0, "bob"), flipped], "soft").judged
    assert (one.answers, one.label, one.annotator) == (("x", "y"), pytest.approx(2 / 3), "")
    assert share([vote(0, 1.0, "a"), vote(0, 0.0, "b")], majority=True) == 0.5
    assert share([vote(0, 0.5, "a"), vote(0, 1.0, "b")]) == 0.75


def test_scores_become_means_and_what_was_asked_once_stays() -> None:
    votes = [vote(0, 1.0, "ann"), vote(0, 1.0, "bob"), vote(1, 0.0, "ann")]
    scores = [vote(0, value, name, kind="scores") for value, name in ((0.2, "ann"), (0.6, "bob"))]
    made = aggregate([*votes, *scores], "soft")
    assert sorted((one.kind, one.prompt, round(one.label, 3)) for one in made.judged) == [
        ("comparisons", "p0", 1.0),
        ("comparisons", "p1", 0.0),
        ("scores", "p0", 0.4),
    ]
    plain = [vote(n, 1.0, "") for n in range(3)]
    assert aggregate(plain, "soft").judged == plain
    assert len(aggregate(votes, "none").judged) == 3


def test_agreement_is_one_for_the_same_votes_and_near_zero_for_guesses() -> None:
    rng = random.Random(0)
    same = [vote(n, float(n % 2), name) for n in range(50) for name in "ab"]
    found = agreement(same)
    assert found is not None
    assert (found.alpha, found.kappa, found.shared) == (1.0, {("a", "b"): 1.0}, 50)
    guesses = agreement([vote(n, float(rng.random() < 0.5), name) for n in range(400) for name in "ab"])
    assert guesses is not None
    assert abs(guesses.alpha) < 0.15
    assert agreement([vote(n, 1.0, "a") for n in range(3)]) is None
    alike = agreement([vote(n, 1.0, name) for n in range(3) for name in "ab"])
    assert alike is not None
    assert math.isnan(alike.alpha)


def test_alpha_is_the_published_example_of_krippendorff() -> None:
    """Nominal data of two observers, ten units, alpha 0.095 (Krippendorff 2011, "Computing alpha-reliability", B)."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    votes = [vote(n, float(v), name) for name, row in (("m", first), ("j", second)) for n, v in enumerate(row)]
    found = agreement(votes)
    assert found is not None
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("others", [[], [vote("q", 1.0, "ann"), vote("q", 0.0, "bob")], [vote("q", 1.0, "ann")]])
def test_scores_become_their_mean_whatever_else_was_judged(others: list[Judged]) -> None:
    scores = [vote(0, 0.0, "ann", kind="scores"), vote(0, 1.0, "bob", kind="scores")]
    found = [one.label for one in aggregate([*scores, *others], "majority").judged if one.kind == "scores"]
    assert found == [0.5]
    raw = aggregate([*scores, *others], "none").judged
    assert sorted(one.label for one in raw if one.kind == "scores") == [0.0, 1.0]


@pytest.mark.parametrize("how", ["majority", "share", "dawid-skene", "bradley-terry"])
def test_ties_only_leave_nobody_to_be_weighed(how: str) -> None:
    made = aggregate([vote(0, 0.5, "ann"), vote(0, 0.5, "bob")], how)
    assert [one.label for one in made.judged] == [0.5]
    assert made.annotators == []


HOWS = ("soft", "majority", "dawid-skene", "bradley-terry")
SHARED = [vote("z", 1.0, "ann"), vote("z", 0.0, "bob")]


@pytest.mark.parametrize("how", HOWS)
def test_a_question_that_one_was_asked_stays_as_it_is_whatever_others_were(how: str) -> None:
    alone = [vote(0, 1.0, "ann"), vote(1, 0.0, "bob"), vote(2, 0.7, "ann")]
    made = aggregate([*alone, *SHARED], how).judged
    assert [one for one in made if one.prompt != "pz"] == alone


def test_a_tie_is_half_for_either_side_and_most_of_them_are_a_tie() -> None:
    votes = [*(vote(0, 0.5, name) for name in "abc"), vote(0, 1.0, "d"), vote(1, 1.0, "a"), vote(1, 1.0, "d")]
    labels = {how: next(one.label for one in aggregate(votes, how).judged if one.prompt == "p0") for how in HOWS}
    assert labels["soft"] == pytest.approx(2.5 / 4)
    assert labels["majority"] == 0.5
    for how in ("dawid-skene", "bradley-terry"):
        assert 0.5 < labels[how] <= 2.5 / 4
    assert share([vote(0, 0.5, "a"), vote(0, 0.5, "b"), vote(0, 1.0, "c"), vote(0, 1.0, "d")], majority=True) == 1.0


def test_one_voice_each_however_often_somebody_was_asked() -> None:
    votes = [*(vote(0, 1.0, "ann") for _ in range(3)), vote(0, 0.0, "bob")]
    made = aggregate(votes, "soft")
    assert [one.label for one in made.judged] == [0.5]
    assert [one.judgements for one in made.annotators] == [1, 1]
    scores = [vote(0, value, name, kind="scores") for value, name in ((0.0, "ann"), (0.0, "ann"), (1.0, "bob"))]
    assert [one.label for one in aggregate(scores, "soft").judged] == [0.5]
    assert [one.label for one in aggregate([vote(0, 1.0, ""), vote(0, 1.0, "")], "soft").judged] == [1.0, 1.0]


@pytest.mark.parametrize("how", HOWS)
def test_margins_become_their_mean_in_whatever_order(how: str) -> None:
    votes = [
        replace(vote(0, label, name), margin=m)
        for label, name, m in ((1.0, "a", 3.0), (0.0, "b", 1.0), (0.0, "c", 2.0))
    ]
    assert [aggregate(order, how).judged[0].margin for order in (votes, votes[::-1])] == [2.0, 2.0]


@pytest.mark.parametrize("how", HOWS)
def test_each_source_has_votes_of_its_own(how: str) -> None:
    here = [vote(0, 1.0, "ann"), vote(0, 1.0, "bob")]
    there = [replace(vote(0, 0.0, name), source="t") for name in ("ann", "bob", "cat")]
    first, second = aggregate([*here, *there], how).judged
    assert first.label > 0.5 > second.label
