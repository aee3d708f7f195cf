"""Rows of a batch on one rank: out of Arrow, and packed for the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.learner.experience import PackedExperience
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.scores import shaped_score
from rlhf_dist.learner.shards import Shard
from rlhf_dist.models import pack
from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.row import Row, row_of
from rlhf_dist.store.schema import ROLLOUT_WRITER

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RankRows:
    """Rows of a batch on one rank, read from Arrow."""

    rows: list[Row]
    rewards: list[Array]
    """Of each row, the reward received with each sampled token, float32 [sampled]; the score comes with the last."""
    rollout_log_probs: list[Array]
    ref_log_probs: list[Array]
    """Empty where the learner has the reference."""
    teacher_log_probs: list[Array]
    """Empty without a teacher, and where the learner has it."""
    cut: Array
    """bool [rows], that ended at the longest length."""
    given: Array
    """float64 [rows], what was found for each row's prompt by itself; NaN where nothing was."""
    groups: Array
    """int64 [rows], equal for the samples of one prompt, numbered over the whole batch."""
    places: Array
    """int64 [rows], position in the whole batch."""
    keys: list[RowKey]

    @cached_property
    def predicting(self) -> list[Array]:
        """Of each row, the positions whose output predicts its sampled tokens."""
        return [row.predicting for row in self.rows]


def read_rows(blocks: Mapping[Any, pa.RecordBatch], shard: Shard, objective: RLObjective, now: Now) -> RankRows:
    """Rows of Arrow blocks as numpy views, scores as they are trained on.

    Args:
        blocks: handle to Arrow batch, for every block that the rows lie in.
        shard: the rows.
        objective: what becomes of scores.
        now: what was found for prompts by themselves.
    """

    def cell(view: RowView, writer: str, column: str) -> Any:
        part = view.slices[writer]
        return blocks[part.block].column(column)[part.row]

    def log_probs(writer: str, column: str) -> list[Array]:
        there = shard.views and writer in shard.views[0].slices
        return [cell(view, writer, column).values.to_numpy() for view in shard.views] if there else []

    rows = [row_of(blocks[view.rollout.block], view.rollout.row) for view in shard.views]
    cut = [cell(view, ROLLOUT_WRITER, "finish_reason").as_py() == "length" for view in shard.views]
    rewards = []
    for view, row, ended in zip(shard.views, rows, cut, strict=True):
        raw, length = cell(view, "reward", "score").as_py(), int(row.sampled.sum())
        score = shaped_score(raw, objective.algorithm, cut=ended, length=length, longest=objective.longest)
        rewards.append(row.token_rewards(score))
    return RankRows(
        rows,
        rewards,
        log_probs(ROLLOUT_WRITER, "rollout_log_probs"),
        log_probs("reference", "ref_log_probs"),
        log_probs("teacher", "teacher_log_probs"),
        np.asarray(cut, dtype=bool),
        np.asarray([now.given.get(view.key.prompt_id, np.nan) for view in shard.views], dtype=np.float64),
        np.asarray(shard.groups, dtype=np.int64),
        np.asarray(shard.places, dtype=np.int64),
        [view.key for view in shard.views],
    )


def to_experience(data: RankRows, micro: MicroBatch, device: torch.device) -> PackedExperience:
    """Pack the rows of one micro-batch, in its order."""
    order = [index for row in micro for index in row]

    def flat(parts: list[Array]) -> torch.Tensor:
        chosen = [parts[index] for index in order] if parts else []
        joined = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.float32)
        return torch.from_numpy(joined.astype(np.float32)).to(device)

    def of_rows(values: Array) -> torch.Tensor:
        return torch.from_numpy(values[order]).to(device)

    return PackedExperience(
        packed=pack([row.tokens for row in data.rows], data.predicting, micro).to(device),
        lengths=torch.tensor([len(data.predicting[index]) for index in order], dtype=torch.int64, device=device),
        groups=of_rows(data.groups),
        places=of_rows(data.places),
        rewards=flat(data.rewards),
        rollout_log_probs=flat(data.rollout_log_probs),
        ref_log_probs=flat(data.ref_log_probs),
        teacher_log_probs=flat(data.teacher_log_probs),
        cut=of_rows(data.cut),
        given=of_rows(data.given),
        keys=[data.keys[index] for index in order],
    )
