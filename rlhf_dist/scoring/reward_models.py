"""Learned rewards: one model or an ensemble, normalised as its `reward.json` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_dist.config import DISAGREEMENT, ModelReward
from rlhf_dist.models import PackedBatch, ValueModel, load_value_model, read_config, resolve
from rlhf_dist.scoring.answers import Answers
from rlhf_dist.scoring.batches import each_output
from rlhf_dist.scoring.hosts import AskedModel, Host
from rlhf_dist.scoring.reward_file import NAME, read_reward_file
from rlhf_dist.store.row import Row


class AskedValueModel:
    """A value model that says what all its heads do at a batch's positions; see `hosts.Host.load`."""

    def __init__(self, path: str, *, dtype: str, attention: str, device: str, processes: int) -> None:
        """Load it."""
        model = load_value_model(path, dtype=getattr(torch, dtype), attention=attention, processes=processes)
        self.module = ValueModel(model.to(device))
        self.layout = self.module.layout

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Values, float32 [selected, heads]."""
        values: torch.Tensor = self.module(batch, all_heads=True)
        return values


class LearnedReward:
    """A `Component`: reads each answer at its last token, or over all its tokens, with every head of every member."""

    def __init__(
        self, settings: ModelReward, host: Host, *, dtype: str, batch_tokens: int, attention: str = "sdpa"
    ) -> None:
        """Load all members of the ensemble.

        Args:
            settings: which reward.
            host: where its models go.
            dtype: torch's name of their dtype.
            batch_tokens: most tokens of a forward pass.
            attention: their attention kernels.

        Raises:
            ModelError: a folder is missing or holds no reward model, or its `reward.json` is not one.
        """
        self.name, self._settings = settings.name, settings
        folder = resolve(settings.path)
        self._file = read_reward_file(folder)
        paths = [str(Path(folder) / member) if member != "." else folder for member in self._file.members]
        self._models = [host.load(AskedValueModel, path=path, dtype=dtype, attention=attention) for path in paths]
        self._batch_tokens, self._device = batch_tokens, host.device
        # A model that came without our file was trained to be read as its own forward does: before any padding, which for
        # some is the very token that ends an answer.
        has_file = (Path(folder) / NAME).is_file()
        self._padding = None if has_file else read_config(paths[0]).get_text_config().pad_token_id

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """The combined reward, and with an ensemble its standard deviation as `NAME_disagreement`."""
        values = self.members(answers)
        if self._settings.normalise:
            values = (values - np.array(self._file.means)) / self._file.std
        found = {self.name: combined(values, self._settings.combine, std_coef=self._settings.std_coef).tolist()}
        if values.shape[1] > 1:
            found[self.name + DISAGREEMENT] = values.std(1).tolist()
        return found

    def members(self, answers: Answers) -> np.ndarray[Any, Any]:
        """Rewards by every member and head, unnormalised, [answers, members x heads]."""
        rows = answers.rows
        chosen = [read_positions(row, self._file.scores) for row in rows]
        if self._padding is not None:
            chosen = [_before(self._padding, row, wanted) for row, wanted in zip(rows, chosen, strict=True)]
        return np.concatenate([self._of(model, [row.tokens for row in rows], chosen) for model in self._models], axis=1)

    def _of(self, model: AskedModel, sequences: list[Any], selections: list[Any]) -> np.ndarray[Any, Any]:
        found: dict[int, list[float]] = {}
        outputs = each_output(
            model,
            sequences,
            selections,
            batch_tokens=self._batch_tokens,
            device=self._device,
            layout=model.layout,
        )
        for number, values in outputs:
            found[number] = values.mean(0).tolist()
        return np.array([found[number] for number in range(len(sequences))])


def _before(padding: int, row: Row, wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The last position whose token is no padding, as transformers' classifiers take it; as it was where all are."""
    others = np.flatnonzero(row.tokens != padding)
    return others[-1:] if len(others) else wanted


def read_positions(row: Row, scores: str) -> np.ndarray[Any, Any]:
    """Positions whose outputs an answer's score is the mean of: all sampled tokens' (`token-mean`), or the last token's."""
    return row.positions if scores == "token-mean" and row.sampled.any() else np.array([len(row.tokens) - 1])


def combined(values: np.ndarray[Any, Any], how: str, *, std_coef: float) -> np.ndarray[Any, Any]:
    """One reward of an ensemble's, [answers, members] to [answers] (Coste et al. 2024, arXiv:2310.02743, section 3).

    Args:
        values: rewards by each member.
        how: `mean`; `min`, the worst-case optimisation; `mean-std`, the uncertainty-weighted mean - c std.
        std_coef: c.
    """
    if how == "min":
        lowest: np.ndarray[Any, Any] = values.min(1)
        return lowest
    mean: np.ndarray[Any, Any] = values.mean(1)
    return mean - std_coef * values.std(1) if how == "mean-std" else mean
