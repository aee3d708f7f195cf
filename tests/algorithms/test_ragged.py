import torch

from rlhf_dist.algorithms.ragged import padded, segment_sums


def test_padding_keeps_every_value_in_its_row() -> None:
    rows, mask = padded(torch.arange(1.0, 7.0), torch.tensor([1, 3, 2]))
    assert rows.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    assert mask.sum(1).tolist() == [1, 3, 2]


def test_segment_sums_and_last_positions() -> None:
    lengths = torch.tensor([1, 3, 2])
    assert segment_sums(torch.arange(1.0, 7.0), lengths).tolist() == [1, 9, 11]
