"""Rows of a PPO batch on one rank: out of Arrow, and packed for the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.config import PPO
from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.learner.ppo import PackedExperience
from rlhf_dist.models import pack
from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.row import Row, row_of
from rlhf_dist.store.schema import ROLLOUT_WRITER

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RankRows:
    """Rows of a PPO batch on one rank, read from Arrow."""

    rows: list[Row]
    rewards: list[Array]
    """Of each row, the reward received with each sampled token, float32 [sampled]; the score comes with the last."""
    rollout_log_probs: list[Array]
    ref_log_probs: list[Array]
    groups: Array
    """int64 [rows], equal for the samples of one prompt."""
    keys: list[RowKey]

    @cached_property
    def predicting(self) -> list[Array]:
        """Of each row, the positions whose output predicts its sampled tokens."""
        return [row.predicting for row in self.rows]


def read_rows(
    blocks: Mapping[Any, pa.RecordBatch], views: Sequence[RowView], groups: Sequence[int], ppo: PPO
) -> RankRows:
    """Rows of Arrow blocks as numpy views; scores clipped to ± `ppo.score_clip` and, where cut short, penalised.

    Args:
        blocks: handle to Arrow batch, for every block that the rows lie in.
        views: the rows.
        groups: number of each row's group.
        ppo: what becomes of scores.
    """

    def cell(view: RowView, writer: str, column: str) -> Any:
        part = view.slices[writer]
        return blocks[part.block].column(column)[part.row]

    rows, rewards = [], []
    for view in views:
        row = row_of(blocks[view.rollout.block], view.rollout.row)
        score = cell(view, "reward", "score").as_py()
        if ppo.score_clip is not None:
            score = max(-ppo.score_clip, min(ppo.score_clip, score))
        cut = cell(view, ROLLOUT_WRITER, "finish_reason").as_py() == "length"
        rows.append(row)
        rewards.append(row.token_rewards(score - ppo.missing_eos_penalty * cut))
    return RankRows(
        rows,
        rewards,
        [cell(view, ROLLOUT_WRITER, "rollout_log_probs").values.to_numpy() for view in views],
        [cell(view, "reference", "ref_log_probs").values.to_numpy() for view in views],
        np.asarray(groups, dtype=np.int64),
        [view.key for view in views],
    )


def to_experience(data: RankRows, micro: MicroBatch, device: torch.device) -> PackedExperience:
    """Pack the rows of one micro-batch, in its order."""
    order = [index for row in micro for index in row]

    def flat(parts: list[Array]) -> torch.Tensor:
        chosen = [parts[index] for index in order]
        joined = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.float32)
        return torch.from_numpy(joined.astype(np.float32)).to(device)

    return PackedExperience(
        packed=pack([row.tokens for row in data.rows], data.predicting, micro).to(device),
        lengths=torch.tensor([len(data.predicting[index]) for index in order], dtype=torch.int64, device=device),
        groups=torch.from_numpy(data.groups[order]).to(device),
        rewards=flat(data.rewards),
        rollout_log_probs=flat(data.rollout_log_probs),
        ref_log_probs=flat(data.ref_log_probs),
        keys=[data.keys[index] for index in order],
    )
