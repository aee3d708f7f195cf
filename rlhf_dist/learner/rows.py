"""Rows of a PPO batch on one rank: out of Arrow, and packed for the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.learner.ppo import PackedExperience
from rlhf_dist.models import pack, response_positions


@dataclass(frozen=True)
class RankRows:
    """Rows of a PPO batch on one rank, read from Arrow."""

    sequences: list[np.ndarray[Any, Any]]
    selections: list[range]
    scores: np.ndarray[Any, Any]
    rollout_log_probs: list[np.ndarray[Any, Any]]
    ref_log_probs: list[np.ndarray[Any, Any]]


def read_rows(
    blocks: Sequence[pa.RecordBatch],
    rows: Sequence[dict[str, tuple[int, int]]],
    *,
    score_clip: float | None,
    missing_eos_penalty: float,
) -> RankRows:
    """Rows of Arrow blocks as numpy views; scores clipped to ± `score_clip` and, where cut short, penalised."""

    def cell(row: dict[str, tuple[int, int]], writer: str, column: str) -> Any:
        block, index = row[writer]
        return blocks[block].column(column)[index]

    def array(row: dict[str, tuple[int, int]], writer: str, column: str) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = cell(row, writer, column).values.to_numpy()
        return values

    sequences, selections, scores = [], [], []
    for row in rows:
        prompt, response = array(row, "rollout", "prompt_tokens"), array(row, "rollout", "response_tokens")
        sequences.append(np.concatenate([prompt, response]))
        selections.append(response_positions(len(prompt), len(response)))
        score = cell(row, "reward", "score").as_py()
        score = max(-score_clip, min(score_clip, score)) if score_clip is not None else score
        cut = cell(row, "rollout", "finish_reason").as_py() == "length"
        scores.append(score - missing_eos_penalty * cut)
    return RankRows(
        sequences,
        selections,
        np.asarray(scores, dtype=np.float32),
        [array(row, "rollout", "rollout_log_probs") for row in rows],
        [array(row, "reference", "ref_log_probs") for row in rows],
    )


def to_experience(data: RankRows, micro: MicroBatch, device: torch.device) -> PackedExperience:
    """Pack the rows of one micro-batch, in its order."""
    order = [index for row in micro for index in row]

    def flat(parts: list[np.ndarray[Any, Any]]) -> torch.Tensor:
        chosen = [parts[index] for index in order]
        joined = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.float32)
        return torch.from_numpy(joined.astype(np.float32)).to(device)

    return PackedExperience(
        packed=pack(data.sequences, data.selections, micro).to(device),
        lengths=torch.tensor([len(data.selections[index]) for index in order], dtype=torch.int64, device=device),
        scores=torch.from_numpy(data.scores[order] if order else data.scores[:0]).to(device),
        rollout_log_probs=flat(data.rollout_log_probs),
        ref_log_probs=flat(data.ref_log_probs),
    )
