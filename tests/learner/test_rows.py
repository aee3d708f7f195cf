"""Rows out of Arrow as the update sees them: scores clipped, cut answers penalised, and what was sampled packed."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rlhf_dist.config import RL, Algorithm, Correction
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.rows import RankRows, read_rows, to_experience
from rlhf_dist.learner.shards import Shard
from rlhf_dist.records import RowKey, Sample
from rlhf_dist.store.experience import RowView, Slice
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import written_by

SCORES = [5.0, -5.0, 1.0]
REASONS = ["stop", "length", "length"]


def blocks() -> dict[str, pa.RecordBatch]:
    """Three answers of 1, 2 and 3 tokens to prompts of 2; each writer has its own order."""
    samples = [
        Sample(
            RowKey(0, n, 0),
            (50 + n, 60 + n),
            tuple(range(n + 1)),
            tuple(-1.0 - i for i in range(n + 1)),
            REASONS[n],
            ((0, n + 1),),
        )
        for n in range(3)
    ]
    parts = {"score": SCORES[::-1], "score_parts": [[("reward", score)] for score in SCORES[::-1]]}
    references = {"ref_log_probs": [[-2.0 - i for i in range(n + 1)] for n in range(3)]}
    return {
        "rollout": rollout_batch(samples),
        "reward": pa.RecordBatch.from_pydict(parts, schema=written_by("reward")),
        "reference": pa.RecordBatch.from_pydict(references, schema=written_by("reference")),
    }


VIEWS = [
    RowView(
        RowKey(0, n, 0),
        3 + n,
        {"rollout": Slice("rollout", n), "reward": Slice("reward", 2 - n), "reference": Slice("reference", n)},
    )
    for n in range(3)
]


def read(groups: list[int], **settings: Any) -> RankRows:
    objective = RLObjective(Algorithm(**settings), Correction(), RL(), longest=4)
    return read_rows(blocks(), Shard(VIEWS, groups, [5, 3, 4]), objective, Now(kl_coef=0.0, given={1: 0.5}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5.0, -5.0, 1.0]),
        ({"score_clip": 2.0}, [2.0, -2.0, 1.0]),
        ({"missing_eos_penalty": 0.5}, [5.0, -5.5, 0.5]),
        ({"score_clip": 2.0, "missing_eos_penalty": 0.5}, [2.0, -2.5, 0.5]),
        ({"overlong_share": 0.5}, [5.0, -5.0, 0.5]),
        ({"overlong_share": 0.75, "overlong_penalty": 3.0}, [5.0, -6.0, -1.0]),
    ],
)
def test_scores_are_clipped_and_then_cut_answers_pay(settings: dict[str, Any], expected: list[float]) -> None:
    found = read([0, 1, 2], **settings)
    assert [float(rewards[-1]) for rewards in found.rewards] == pytest.approx(expected)
    assert [len(rewards) for rewards in found.rewards] == [1, 2, 3]
    assert all(not rewards[:-1].any() for rewards in found.rewards), "the score comes with the last token"


def test_every_writers_columns_belong_to_their_row() -> None:
    found = read([4, 4, 9])
    assert [row.answer.tolist() for row in found.rows] == [[0], [0, 1], [0, 1, 2]]
    assert [values.tolist() for values in found.rollout_log_probs] == [[-1], [-1, -2], [-1, -2, -3]]
    assert [values.tolist() for values in found.ref_log_probs] == [[-2], [-2, -3], [-2, -3, -4]]
    assert found.groups.tolist() == [4, 4, 9]
    assert found.places.tolist() == [5, 3, 4]
    assert found.cut.tolist() == [False, True, True]
    np.testing.assert_array_equal(found.given, [np.nan, 0.5, np.nan])
    assert found.teacher_log_probs == []


def test_a_micro_batch_holds_its_rows_flat_in_its_order_and_selects_what_predicts_the_sampled_tokens() -> None:
    data = read([0, 1, 2])
    micro = to_experience(data, [[2], [0, 1]], torch.device("cpu"))
    assert micro.lengths.tolist() == [3, 1, 2]
    assert micro.groups.tolist() == [2, 0, 1]
    assert micro.packed.targets.tolist() == [0, 1, 2, 0, 0, 1]
    assert micro.packed.input_ids.tolist() == [[52, 62, 0, 1, 2, 0, 0], [50, 60, 0, 51, 61, 0, 1]]
    assert micro.packed.select.tolist() == [1, 2, 3, 7 + 1, 7 + 4, 7 + 5]
    assert micro.rewards.tolist() == [0, 0, 1, 5, 0, -5]
    assert micro.ref_log_probs.tolist() == [-2, -3, -4, -2, -2, -3]


def test_an_empty_micro_batch_takes_part_with_nothing() -> None:
    micro = to_experience(read([0, 1, 2]), [], torch.device("cpu"))
    assert (len(micro.lengths), len(micro.rewards), len(micro.packed.select)) == (0, 0, 0)
    assert micro.lengths.dtype == torch.int64
    assert np.asarray(micro.packed.input_ids).shape == (1, 1)
