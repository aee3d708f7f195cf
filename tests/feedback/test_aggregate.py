"""Aggregation and agreement on simulated annotators whose truth is known."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.data.feedback import Judged
from rlhf_dist.feedback.aggregate import Aggregated, aggregate, share
from rlhf_dist.feedback.crowd_bradley_terry import crowd_bradley_terry

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
    assert share([vote(0, 0.7 - 0.2, "a")], majority=True) == 0.5, "a tie, but for floats"


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


@pytest.mark.parametrize("others", [[], [vote("q", 1.0, "ann"), vote("q", 0.0, "bob")], [vote("q", 1.0, "ann")]])
def test_scores_become_their_mean_whatever_else_was_judged(others: list[Judged]) -> None:
    scores = [vote(0, 0.0, "ann", kind="scores"), vote(0, 1.0, "bob", kind="scores")]
    found = [one.label for one in aggregate([*scores, *others], "majority").judged if one.kind == "scores"]
    assert found == [0.5]
    raw = aggregate([*scores, *others], "none").judged
    assert sorted(one.label for one in raw if one.kind == "scores") == [0.0, 1.0]


HOWS = ("soft", "majority", "dawid-skene", "bradley-terry")
SHARED = [vote("z", 1.0, "ann"), vote("z", 0.0, "bob")]


@pytest.mark.parametrize("how", HOWS[:3])
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
def test_each_source_has_votes_of_its_own(how: str) -> None:
    here = [vote(0, 1.0, "ann"), vote(0, 1.0, "bob")]
    there = [replace(vote(0, 0.0, name), source="t") for name in ("ann", "bob", "cat")]
    first, second = aggregate([*here, *there], how).judged
    assert first.label > 0.5 > second.label


@pytest.mark.parametrize("how", HOWS)
def test_a_margin_is_the_mean_of_those_who_agree_with_the_label(how: str) -> None:
    """One is much for a, two are a little for b: the label is b's, and so is the margin."""
    said = ((1.0, "a", 3.0), (0.0, "b", 1.0), (0.0, "c", 2.0))
    votes = [replace(vote(0, label, name), margin=margin) for label, name, margin in said]
    made = aggregate(votes, how).judged[0]
    assert made.label < 0.5
    assert made.margin == 1.5


@pytest.mark.parametrize("how", HOWS)
def test_a_tie_has_no_margin(how: str) -> None:
    votes = [replace(vote(0, label, name), margin=1.0) for label, name in ((1.0, "a"), (0.0, "b"))]
    (made,) = aggregate(votes, how).judged
    assert (made.label, made.margin) == (0.5, 0.0)
    again = [replace(one, annotator="a") for one in votes]
    assert [(one.label, one.margin) for one in aggregate(again, how).judged] == [(0.5, 0.0)]


SAID = st.tuples(
    st.integers(0, 3),
    st.sampled_from("abcd"),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([0.0, 1.0, 2.5]),
)


@pytest.mark.parametrize("how", HOWS)
@given(said=st.lists(SAID, min_size=1, max_size=14), data=st.data())
@settings(max_examples=25, deadline=None)
def test_neither_the_order_of_rows_nor_the_side_of_an_answer_changes_anything(
    how: str, said: list[tuple[int, str, float, float]], data: st.DataObject
) -> None:
    rows = [replace(vote(task, label, name), margin=margin) for task, name, label, margin in said]
    other = [
        replace(one, answers=one.answers[::-1], label=1 - one.label) if data.draw(st.booleans()) else one
        for one in data.draw(st.permutations(rows))
    ]
    made, again = aggregate(rows, how), aggregate(other, how)
    assert labels_of(made) == pytest.approx(labels_of(again), abs=1e-9)
    assert [(one.name, one.judgements) for one in made.annotators] == [
        (one.name, one.judgements) for one in again.annotators
    ]
    assert (made.agreement is None) == (again.agreement is None)


def labels_of(made: Aggregated) -> dict[tuple[str, str], float]:
    return {
        (one.prompt, name): getattr(one, name)
        for one in made.judged
        for name in ("label", "margin")
        if one.answers == ("x", "y")
    }


def test_bradley_terry_knows_an_answer_from_other_questions() -> None:
    """A over B, B over C, A over C, each said once: a pair between strangers is closer than the ends of the chain."""
    pairs = [("x", "y", "ann"), ("y", "z", "bob"), ("x", "z", "cat")]
    chain = [Judged("comparisons", "p", (one, two), 1.0, "s", "here", name) for one, two, name in pairs]
    first, second, ends = (one.label for one in aggregate(chain, "bradley-terry").judged)
    assert 0.5 < first == pytest.approx(second, abs=1e-4)
    assert first < ends < 1.0
    more = aggregate([*chain, *SHARED], "bradley-terry").judged
    assert [one.label for one in more[:3]] == pytest.approx([first, second, ends], abs=0.02), (
        "nor do other questions matter"
    )


def test_a_lone_vote_that_bradley_terry_turns_round_loses_its_margin() -> None:
    known = [Judged("comparisons", "p", ("x", "y"), 1.0, "s", "here", name) for name in "abcdef"]
    known += [Judged("comparisons", "p", ("y", "z"), 1.0, "s", "here", name) for name in "abcdef"]
    contrary = Judged("comparisons", "p", ("x", "z"), 0.0, "s", "here", "g", 2.0)
    made = aggregate([*known, contrary], "bradley-terry").judged[-1]
    assert made.label > 0.5
    assert made.margin == 0.0


def test_raw_judgements_come_with_what_is_known_of_those_who_judged() -> None:
    votes = [vote(n, float(n % 2), name) for n in range(4) for name in "ab"]
    raw, soft = aggregate(votes, "none"), aggregate(votes, "soft")
    assert raw.judged == votes
    assert (raw.annotators, raw.agreement) == (soft.annotators, soft.agreement)
    assert raw.agreement is not None
    assert raw.agreement.alpha == 1.0
    assert [one.shared for one in raw.annotators] == [4, 4]
    assert raw.barely_known == ["a", "b"]
    many = [vote(n, float(n % 2), name) for n in range(20) for name in "ab"]
    alone = [vote(f"q{n}", 1.0, "c") for n in range(30)]
    assert aggregate([*many, *alone], "soft").barely_known == ["c"], "what nobody else was asked tells nothing"


@pytest.mark.parametrize("how", HOWS)
def test_ties_only_leave_nobody_suspected(how: str) -> None:
    made = aggregate([vote(task, 0.5, name) for task in range(50) for name in "ab"], how)
    assert {one.label for one in made.judged} == {0.5}
    assert [one.careless for one in made.annotators] == [False, False]


def test_who_always_says_that_it_is_a_tie_is_suspected_and_who_often_does_is_not() -> None:
    votes, _ = simulated(CAREFUL, tasks=100, seed=0)
    often = [replace(one, annotator="oft", label=0.5 if n % 5 < 2 else one.label) for n, one in enumerate(votes[::3])]
    never = [vote(n, 0.5, "nil") for n in range(100)]
    assert [one.name for one in aggregate([*votes, *often, *never], "soft").annotators if one.careless] == ["nil"]
