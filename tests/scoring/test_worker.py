"""What scorers write does not depend on who generated which row when, nor on how many score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_dist.config import ModelReward, Safety
from rlhf_dist.errors import RewardError
from rlhf_dist.records import PromptTask, RowKey
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.worker import Scorer, _check_finite
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.row import Row, single_turn
from tests.runs import Folders

ROWS, CHUNK = 24, 5
ORDER = np.random.default_rng(5).permutation(ROWS).tolist()


def rows() -> dict[RowKey, Row]:
    draws = np.random.default_rng(0)
    return {
        RowKey(0, n, 0): single_turn(draws.integers(3, 400, size=4), draws.integers(3, 400, size=draws.integers(1, 20)))
        for n in range(ROWS)
    }


def scored(scorer: Scorer, arrivals: Sequence[int], workers: int) -> dict[str, dict[RowKey, Any]]:
    """Columns by name and row, where rows arrive in an order, and workers lease whatever is whole in turns."""
    every, index = rows(), ExperienceIndex(batch_rows=ROWS, chunk_rows=CHUNK, scorers=(scorer.writer,))
    index.submit([PromptTask(0, prompt, (1,), 1) for prompt in ORDER])
    index.publish(0)
    index.lease_prompts("a", ROWS)
    found: dict[str, dict[RowKey, Any]] = {}
    for number, prompt in enumerate(arrivals):
        index.append("a", object(), [RowKey(0, prompt, 0)], [len(every[RowKey(0, prompt, 0)].tokens)])
        if number % 7 == 6 or number == ROWS - 1:
            leases = []
            while keys := [view.key for view in index.lease_rows(f"s{len(leases) % workers}", scorer.writer)]:
                leases.append((f"s{len(leases) % workers}", keys))
            for worker, keys in leases[::-1]:
                for name, values in scorer.score([every[key] for key in keys]).items():
                    found.setdefault(name, {}).update(zip(keys, values, strict=True))
                index.add_column(worker, scorer.writer, object(), keys)
    assert index.complete(0)
    return found


@pytest.fixture(params=["reward", "reference"])
def scorer(request: pytest.FixtureRequest, folders: Folders) -> Scorer:
    shared: dict[str, Any] = {"dtype": "float32", "batch_tokens": 64, "device": "cpu"}
    policy = str(Path(folders.policy))
    if request.param == "reference":
        return ReferenceScorer(policy, temperature=1.0, **shared)
    return RewardScorer((ModelReward(path=str(folders.reward)),), Safety(), policy, **shared)


def test_columns_are_bit_equal_whatever_the_order_of_arrival_and_the_number_of_workers(scorer: Scorer) -> None:
    shuffled = np.random.default_rng(1).permutation(ROWS).tolist()
    expected = scored(scorer, ORDER, 1)
    assert all(len(column) == ROWS for column in expected.values())
    for arrivals, workers in ((ORDER[::-1], 1), (shuffled, 1), (shuffled, 2), (ORDER, 3)):
        assert scored(scorer, arrivals, workers) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_what_is_no_number_in_the_column_is_refused(value: float) -> None:
    key = RowKey(0, 0, 0)
    _check_finite([key], {"score": [1e38], "score_parts": [[("r", 1e38)]], "ref_log_probs": [[-1.0]]}, "reward")
    for column in ({"score": [value]}, {"score_parts": [[("r", value)]]}, {"ref_log_probs": [[-1.0, value]]}):
        with pytest.raises(RewardError, match="for prompt 0, answer 0, iteration 0; expected finite numbers"):
            _check_finite([key], column, "reward")


def test_company_does_change_the_last_bits(folders: Folders) -> None:
    """Why chunks are fixed: were this to fail, they would not need to be."""
    reference = ReferenceScorer(str(folders.policy), temperature=1.0, dtype="float32", batch_tokens=64, device="cpu")
    every = [*rows().values()]
    together = reference.score(every)["ref_log_probs"]
    alone = [reference.score([row])["ref_log_probs"][0] for row in every]
    assert together != alone
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
