from collections import Counter

import pytest

from rlhf_dist.config import SFTConfig
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.stages.supervised import check_fits, encoder_of, per_kind, shuffled
from tests.runs import Folders


def test_every_unit_is_seen_once_in_an_epoch_in_another_order_in_the_next() -> None:
    first, second = (shuffled([0] * 64, 8, seed=1, epoch=epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(unit for batch in batches for unit in batch) == list(range(64))
    assert first != second
    assert shuffled([0] * 64, 8, seed=1, epoch=0) == first
    assert [len(batch) for batch in shuffled([0] * 20, 8, seed=1, epoch=0)] == [8, 8]
    assert [len(batch) for batch in shuffled([0] * 5, 8, seed=1, epoch=0)] == [5]


def test_every_batch_has_its_share_of_each_kind() -> None:
    strata = [1.0] * 900 + [0.0] * 90 + [3.0] * 30
    for batch in shuffled(strata, 102, seed=0, epoch=0):
        counts = Counter(strata[unit] for unit in batch)
        assert abs(counts[0.0] - 9) <= 2
        assert abs(counts[3.0] - 3) <= 2


def test_kinds_are_divided_by_their_own_units_and_empty_ones_left_out() -> None:
    facts = {"loss": 2.0, "a/units": 0.5, "a/hits": 0.25, "b/units": 0.0, "b/hits": 0.0}
    assert per_kind(facts) == {"loss": 2.0, "a/hits": 0.5}


@pytest.mark.parametrize(
    ("tokens", "micro_batch_tokens", "error", "told"),
    [
        (129, 1000, ModelError, "policy .* has 128 positions; the longest sequence would have 129 tokens"),
        (100, 99, ConfigError, "learner.micro_batch_tokens is 99; expected at least 100"),
    ],
)
def test_rows_that_have_no_room_are_refused(
    tokens: int, micro_batch_tokens: int, error: type[Exception], told: str, folders: Folders
) -> None:
    examples = ExampleSet(example_table([[1] * tokens, [1, 2]], [[0], [0]]), [[0], [1]], [1.0, 1.0])
    config = SFTConfig(model=str(folders.policy), learner={"micro_batch_tokens": micro_batch_tokens})
    with pytest.raises(error, match=told):
        check_fits(config, [("policy", config.model)], encoder_of(config.model), examples)
    fits = SFTConfig(model=str(folders.policy), learner={"micro_batch_tokens": 128})
    models = [("policy", fits.model), ("reference", fits.model)]
    check_fits(fits, models, encoder_of(fits.model), ExampleSet(example_table([[1] * 128], [[0]]), [[0]], [1.0]))
