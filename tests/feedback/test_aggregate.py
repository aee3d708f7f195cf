"""Aggregation and agreement on simulated annotators whose truth is known."""

import math
import random

import pytest

from rlhf_dist.data.feedback import Judged
from rlhf_dist.feedback.aggregate import aggregate, share
from rlhf_dist.feedback.agreement import agreement

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
