import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.records import RowKey, Sample
from rlhf_dist.store.row import Row, extents_of, rollout_batch, rows_of, single_turn
from rlhf_dist.store.schema import ROLLOUT, keys_of, lengths_of

TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


@given(TOKENS, TOKENS)
def test_a_row_of_one_turn_knows_prompt_answer_and_what_predicts_each_sampled_token(prompt: list, answer: list) -> None:
    row = single_turn(prompt, answer)
    assert (row.prompt.tolist(), row.answer.tolist()) == (prompt, answer)
    assert row.tokens[row.positions].tolist() == answer
    assert row.predicting.tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))


def test_what_an_environment_says_between_two_turns_is_part_of_the_answer_but_not_learnt() -> None:
    sampled = np.array([False, False, True, True, False, False, True])
    row = Row(np.arange(7, dtype=np.int32), sampled, ((4, 2), (5, 1)), ((1, 8.0), (3, 0.5), (5, 0.25)))
    assert row.prompt.tolist() == [0, 1]
    assert row.answer.tolist() == [2, 3, 4, 5, 6]
    assert row.predicting.tolist() == [1, 2, 5]
    # 0.5 came with the second sampled token, 0.25 with what the environment said after it, and the score with the last.
    # What came before any of them can only go to the first.
    assert row.token_rewards(2.0).tolist() == [8.0, 0.75, 2.0]


def samples() -> list[Sample]:
    return [
        Sample(RowKey(0, i, 0), (1,) * (i + 1), (2,) * (3 - i), (-0.5,) * (3 - i), "stop", ((4, 3 - i),))
        for i in range(3)
    ]


def test_finished_samples_survive_the_way_through_arrow() -> None:
    batch = rollout_batch(samples())
    assert batch.schema.equals(ROLLOUT)
    batch.validate(full=True)
    assert keys_of(batch) == [RowKey(0, i, 0) for i in range(3)]
    assert lengths_of(batch) == [4, 4, 4]
    assert batch.column("tokens").values.nbytes == 4 * 12, "ragged"
    for sample, row in zip(samples(), rows_of(batch), strict=True):
        assert tuple(row.prompt) == sample.prompt_tokens
        assert tuple(row.answer) == sample.response_tokens
        assert row.versions == sample.versions
        assert row.tokens.dtype == np.int32


@pytest.mark.parametrize("part", [slice(1, 3), slice(2, 3)])
def test_a_slice_of_a_batch_reads_its_own_rows(part: slice) -> None:
    batch = rollout_batch(samples())
    cut = batch.slice(part.start, part.stop - part.start)
    assert [row.tokens.tolist() for row in rows_of(cut)] == [row.tokens.tolist() for row in rows_of(batch)][part]
    assert rows_of(cut)[0].sampled.tolist() == rows_of(batch)[part.start].sampled.tolist()


SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=3)


@given(st.lists(st.tuples(TOKENS, SPANS), min_size=1, max_size=8), st.integers(0, 7))
def test_extents_of_a_batch_are_those_of_its_rows(made: list, first: int) -> None:
    samples = [
        Sample(RowKey(0, n, 0), tuple(prompt), (2,) * sum(c for _, c in spans), (), "stop", tuple(spans))
        for n, (prompt, spans) in enumerate(made)
    ]
    batch = rollout_batch(samples)
    cut = batch.slice(min(first, len(made) - 1))
    found = extents_of(cut)
    for number, row in enumerate(rows_of(cut)):
        told = (len(row.prompt), row.sampled.sum(), len(row.tokens), min(version for version, _ in row.versions))
        assert tuple(each[number] for each in found) == told
