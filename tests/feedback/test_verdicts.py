"""What can be said of answers: sides turn and turn back, rankings are their pairs, gold is known."""

from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import marks
from rlhf_dist.feedback.criteria import checked_criteria, taken
from rlhf_dist.feedback.orders import as_text, order_of, probe
from rlhf_dist.feedback.verdicts import (
    COMPARISONS,
    LABELS,
    by_own_sides,
    checked_gold,
    is_right,
    pairs,
    ranked,
    ranking,
)


@pytest.mark.parametrize("verdict", COMPARISONS)
def test_sides_turned_twice_are_the_same_and_turned_once_are_the_other_label(verdict: str) -> None:
    assert by_own_sides(verdict, (0, 1)) == verdict
    assert by_own_sides(by_own_sides(verdict, (1, 0)), (1, 0)) == verdict
    assert LABELS[by_own_sides(verdict, (1, 0))] == 1 - LABELS[verdict]


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(st.permutations(range(n)), st.lists(st.integers(1, n), min_size=n, max_size=n))
    )
)
def test_a_rankings_pairs_are_what_the_ranks_say_whatever_the_order_shown(case: tuple[list[int], list[int]]) -> None:
    order, ranks = case
    verdict = ranking(ranks, order)
    own = dict(zip(order, ranks, strict=True))
    assert sorted(place for group in ranked(verdict) for place in group) == sorted(order)
    for a, b, label in pairs("ranking", verdict):
        assert label == (1.0 if own[a] < own[b] else 0.0 if own[a] > own[b] else 0.5)
    assert len(pairs("ranking", verdict)) == len(list(combinations(order, 2)))


def test_a_gold_ranking_is_right_if_no_pair_is_turned_round() -> None:
    for order in permutations(range(3)):
        verdict = ">".join(map(str, order))
        assert is_right("ranking", verdict, "b>a>c") == (order == (1, 0, 2))
        assert is_right("ranking", verdict, "b") == (order[0] == 1)
    assert not is_right("ranking", "0=1>2", "b"), "the best alone"
    assert is_right("comparison", "a_much", "a")
    assert not is_right("comparison", "both_bad", "b")
    assert is_right("score", "4", "5")
    assert not is_right("score", "3", "5")


@pytest.mark.parametrize(
    ("kind", "gold"), [("comparison", "c"), ("ranking", "a>b"), ("ranking", "a>a>b"), ("score", 6), ("comment", "a")]
)
def test_gold_that_cannot_be_is_named(kind: str, gold: object) -> None:
    with pytest.raises(DataError, match=r"t:1: gold is .*; expected"):
        checked_gold("t:1", kind, gold, 3 if kind == "ranking" else 2)


def test_everybody_has_orders_of_their_own() -> None:
    assert {order_of(task, 1, 2) for task in range(50)} == {(0, 1), (1, 0)}
    assert {order_of(1, person, 2) for person in range(50)} == {(0, 1), (1, 0)}
    assert len({order_of(task, 1, 3) for task in range(200)}) == 6
    assert as_text(order_of(1, 1, 3)) == as_text(order_of(1, 1, 3))
    assert len({probe(person, 0) for person in range(50)}) == 50


CRITERIA = [
    {"name": "helpful", "scale": [1, 7]},
    {"name": "harmless", "kind": "comparison"},
    {"name": "tongue", "kind": "choice", "choices": ["good", "bad"], "of": "task", "required": False},
]


def test_criteria_are_taken_by_the_tasks_own_order() -> None:
    asked = checked_criteria("c", CRITERIA)
    form = {"criterion-0-0": "7", "criterion-0-1": "2", "criterion-1": "a"}
    given = {(one.criterion, one.place): one.value for one in taken(asked, form, (1, 0))}
    assert given == {("helpful", 1): "7", ("helpful", 0): "2", ("harmless", None): "b"}
    for wrong, told in (
        ({"criterion-0-0": "8"}, "helpful is '8'"),
        ({}, "helpful is ''"),
        ({**form, "criterion-2": "x"}, "tongue is 'x'"),
    ):
        with pytest.raises(DataError, match=told):
            taken(asked, wrong, (0, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        [{"name": "x", "scale": [5, 1]}],
        [{"name": "x", "kind": "choice"}],
        [{"name": "x"}, {"name": "x"}],
        [{"nam": "x"}],
        {"name": "x"},
        [{"name": "x", "choices": ["a", "b"]}],
    ],
)
def test_criteria_that_cannot_be_are_named(wrong: object) -> None:
    with pytest.raises(DataError, match="guide.yaml: "):
        checked_criteria("guide.yaml", wrong)


def test_a_marked_passage_is_found_word_for_word_or_as_it_is_read() -> None:
    answer = "Press the **power  button** for\nten seconds."
    (exact, loose, gone) = marks.taken(
        ["0", "0", "1"],
        ["the **power", "power button for ten", "nothing of it"],
        ["why", "", "c"],
        (1, 0),
        ["other", answer],
    )
    assert answer[exact.start : exact.end] == "the **power"
    assert answer[loose.start : loose.end] == "power  button** for\nten"
    assert (gone.place, gone.start, gone.end, gone.text) == (0, None, None, "nothing of it")
    assert marks.from_text(marks.as_text([exact, gone])) == [exact, gone]
    with pytest.raises(DataError, match="in answer '2'"):
        marks.taken(["2"], ["x"], [""], (0, 1), ["a", "b"])
    with pytest.raises(DataError, match="expected at most 20"):
        marks.taken(["0"] * 21, ["x"] * 21, [""] * 21, (0, 1), ["a", "b"])


def test_a_passage_of_many_words_is_looked_for_once() -> None:
    """By going back at each word it took a quarter of a minute."""
    answer = "a " * 500_000
    assert marks.located(answer, "a " * 900 + "b") == (None, None)
    assert marks.located(answer + "**b**", "a " * 900 + "b") == (len(answer) - 1800, len(answer) + 3)


@given(st.text("ab *_`\n", max_size=300), st.text("ab *_`\n", max_size=300))
def test_a_passage_is_found_where_it_is(before: str, passage: str) -> None:
    start, end = marks.located(before + passage, passage.strip())
    assert start is not None
    assert (before + passage)[start:end] == passage.strip()
