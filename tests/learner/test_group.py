"""What a group plans with; its ranks: tests/integration/test_learner_parity.py."""

import pytest

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Learner, Timeouts
from rlhf_dist.learner.group import LearnerGroup
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
    group = LearnerGroup([], Learner(row_tokens=400, micro_batch_tokens=2048), watch=Watch(), timeouts=Timeouts())
    group._layout, group._positions = layout, positions
    assert group._budget.row_tokens == planned
