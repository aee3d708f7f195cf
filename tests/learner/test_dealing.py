"""Who gets which part of a batch."""

import pytest

from rlhf_dist.config import Learner
from rlhf_dist.data.packing import Budget
from rlhf_dist.learner.dealing import Dealer, row_tokens_of
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.models.wrapped import RowLayout


@pytest.mark.parametrize(
    ("layout", "positions", "planned"),
    [
        (RowLayout.PACKED, None, 400),
        (RowLayout.PACKED, 1024, 400),
        (RowLayout.PACKED, 256, 256),
        (RowLayout.ONE_PER_ROW, 1024, 1),
        (RowLayout.ONE_ROW, 256, 2048),
    ],
)
def test_rows_are_as_long_as_the_models_can_take_them(layout: RowLayout, positions: int | None, planned: int) -> None:
    assert row_tokens_of(Learner(row_tokens=400, micro_batch_tokens=2048), layout, positions) == planned


@pytest.mark.parametrize("sharing", [1, 2, 3])
def test_ranks_that_share_rows_get_the_same_and_all_together_everything_once(sharing: int) -> None:
    units = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    batch = SupervisedBatch(None, units, [20, 30, 24, 40, 10], 5.0)
    dealt = Dealer(Budget(2, 64, 0, hidden=64), sharing).examples(batch)
    assert len(dealt) == 2 * sharing
    apart = dealt[::sharing]
    assert dealt == [part for part in apart for _ in range(sharing)]
    examples = [example for part in apart for micro in part for row in micro for example in row]
    assert sorted(examples) == list(range(10))
    together = [row for part in apart for micro in part for row in micro]
    assert all(any(set(unit) <= set(row) for row in together) for unit in units)
