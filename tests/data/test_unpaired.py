"""Single answers from comparisons and scores, and answers to other prompts beside them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.unpaired import strangers, unpaired, with_mismatched

PAIR = Judged("comparisons", "Hi", (" Hello!", " no"), 0.8, "s", "f:1", messages={" no": {"role": "assistant"}})
THUMB = Judged("scores", "Hi", (" Good day!",), 0.5, "s", "f:2")


def test_comparisons_and_scores_become_answers_that_are_desirable_or_not() -> None:
    tie, liked = replace(PAIR, label=0.5, where="f:3"), replace(THUMB, label=0.51)
    found = unpaired([PAIR, tie, THUMB, liked], desirable_above=0.5)
    assert [(one.kind, *one.answers, one.label, one.where) for one in found] == [
        ("scores", " Hello!", 0.8, "f:1"),
        ("scores", " no", pytest.approx(0.2), "f:1"),
        ("scores", " Good day!", 0.0, "f:2"),
        ("scores", " Good day!", 1.0, "f:2"),
    ]
    assert all(one.messages == PAIR.messages for one in found[:2])


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 9))
def test_nobody_meets_an_answer_to_their_own_prompt(keys: list[int], seed: int) -> None:
    found = strangers(keys, seed=seed)
    if len(set(keys)) < 2:
        assert found == [None] * len(keys)
        return
    assert all(other is not None and keys[own] != keys[other] for own, other in enumerate(found))
    if len(set(keys)) == len(keys):
        assert sorted(found) == [*range(len(keys))], "an odd number goes round as well"


def examples(*pairs: tuple[list[int], list[int]]) -> ExampleSet:
    """Prompts and answers as token ids."""
    tokens = [prompt + answer for prompt, answer in pairs]
    selected = [range(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in pairs]
    labels = {"label": [float(number % 2) for number in range(len(pairs))]}
    count = len(pairs)
    return ExampleSet(
        example_table(tokens, selected, labels), [[n] for n in range(count)], [1.0] * count, ["f"] * count
    )


def test_mismatched_pairs_are_a_prompt_and_an_answer_to_another_no_longer_than_what_is_learnt() -> None:
    given = [([1, 2, 3, 4, 5], [6]), ([1, 2, 3, 4, 5], [7, 8]), ([9], [10, 11, 12, 13, 14])]
    found = with_mismatched(examples(*given), seed=0)
    assert found.mismatched == [3, 4, 5]
    assert found.units == [[0], [1], [2]]
    rows = found.table.to_pylist()
    assert rows[:3] == examples(*given).table.to_pylist()
    assert [row["tokens"] for row in rows[3:5]] == [[4, 5, 10, 11, 12, 13, 14]] * 2, "cut to 7 tokens"
    assert rows[5]["tokens"] in ([9, 6], [9, 7, 8])
    assert [row["selected"] for row in rows[3:5]] == [[1, 2, 3, 4, 5]] * 2
    assert found.selected([2, 0]).mismatched == [5, 3]


def test_with_one_prompt_there_is_nothing_to_mismatch() -> None:
    alone = examples(([1], [2]), ([1], [3]))
    assert with_mismatched(alone, seed=0) is alone
    assert alone.selected([1]).mismatched == []
