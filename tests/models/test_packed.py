"""Rows of sequences, and the same sequences in other rows."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.models import pack
from rlhf_dist.models.packed import PackedBatch

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def batch_of(lengths: list[int], per_row: int) -> tuple[PackedBatch, list[list[int]]]:
    """Sequences whose tokens tell whose and where they are; every second position is wanted."""
    sequences = [np.arange(length, dtype=np.int32) + 100 * (number + 1) for number, length in enumerate(lengths)]
    rows = [list(range(start, min(start + per_row, len(lengths)))) for start in range(0, len(lengths), per_row)]
    return pack(sequences, [range(0, length, 2) for length in lengths], rows), rows


def read(batch: PackedBatch) -> list[list[int]]:
    """The sequences, by their starts and lengths."""
    flat = batch.input_ids.flatten()
    pairs = zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)
    return [flat[start : start + length].tolist() for start, length in pairs]


@given(LENGTHS, st.integers(1, 4))
def test_other_rows_hold_the_same_sequences_and_the_same_outputs_in_order(lengths: list[int], per_row: int) -> None:
    batch, _ = batch_of(lengths, per_row)
    for moved in (batch.one_per_row(), batch.one_row()):
        assert read(moved) == read(batch)
        before = batch.input_ids.flatten()[batch.select].tolist()
        assert moved.input_ids.flatten()[moved.select].tolist() == before
        assert torch.equal(moved.targets, batch.targets)
        positions = moved.position_ids.flatten()
        for start, length in zip(moved.starts.tolist(), moved.lengths.tolist(), strict=True):
            assert positions[start : start + length].tolist() == list(range(length))
    assert batch.one_per_row().is_one_per_row
    assert batch.one_row().input_ids.shape == (1, sum(lengths))


@given(LENGTHS, st.integers(1, 4))
def test_no_position_goes_beyond_those_of_the_longest_sequence(lengths: list[int], per_row: int) -> None:
    """A table of positions has room for a sequence, not for the padding of a row of several."""
    batch, _ = batch_of(lengths, per_row)
    for moved in (batch, batch.one_per_row(), batch.one_row()):
        assert int(moved.position_ids.max()) == max(lengths) - 1


def test_a_batch_of_nothing_stays_one() -> None:
    batch = pack([], [], [])
    for moved in (batch, batch.one_per_row(), batch.one_row()):
        assert moved.input_ids.shape == (1, 1)
        assert moved.select.numel() == 0
