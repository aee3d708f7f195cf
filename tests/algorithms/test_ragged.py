import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.ragged import mask_of, padded, segment_sums, sums_to_go

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def test_padding_keeps_every_value_in_its_row() -> None:
    rows, mask = padded(torch.arange(1.0, 7.0), torch.tensor([1, 3, 2]))
    assert rows.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    assert mask.sum(1).tolist() == [1, 3, 2]
    assert mask.tolist() == mask_of(torch.tensor([1, 3, 2])).tolist()


def test_segment_sums_also_of_rows_and_of_nothing() -> None:
    lengths = torch.tensor([1, 3, 0, 2])
    assert segment_sums(torch.arange(1.0, 7.0), lengths).tolist() == [1, 9, 0, 11]
    assert segment_sums(torch.ones(6, 2), lengths).tolist() == [[1, 1], [3, 3], [0, 0], [2, 2]]
    assert segment_sums(torch.zeros(0), lengths[:0]).shape == (0,)
    assert mask_of(lengths[:0]).shape == (0, 0)


@settings(max_examples=50)
@given(lengths=LENGTHS, gamma=st.sampled_from([0.0, 0.3, 0.99, 1.0]), seed=st.integers(0, 1000))
def test_sums_to_go_equal_a_loop(lengths: list[int], gamma: float, seed: int) -> None:
    flat = torch.randn(sum(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = [
        sum(gamma**k * x for k, x in enumerate(own[t:]))
        for own in (each.tolist() for each in flat.split(lengths))
        for t in range(len(own))
    ]
    assert sums_to_go(flat, torch.tensor(lengths), gamma=gamma).tolist() == pytest.approx(expected)


def test_sums_to_go_by_hand_are_whole_sums_unless_told_otherwise() -> None:
    flat, lengths = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 1])
    assert sums_to_go(flat, lengths).tolist() == [7, 6, 4, 8]
    assert sums_to_go(flat, lengths, gamma=0.5).tolist() == [3, 4, 4, 8]
    assert sums_to_go(flat, lengths, gamma=0.0).tolist() == [1, 2, 4, 8]
    assert sums_to_go(torch.zeros(0), lengths[:0]).shape == (0,)
