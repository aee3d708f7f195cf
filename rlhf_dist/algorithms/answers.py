"""The answers of an iteration, all ranks' together: what baselines and scales are functions of."""

from __future__ import annotations

from typing import NamedTuple

import torch

NO_SPREAD = 1e-6
"""Largest less smallest, up to which numbers count as equal: fp32 scores that should be are off by less."""


class AnswerBatch(NamedTuple):
    """One entry per answer, in canonical order: by prompt, then by sample."""

    rewards: torch.Tensor
    """float64 [answers], the sum of an answer's token rewards, penalties taken off."""
    lengths: torch.Tensor
    """int64 [answers], sampled tokens of each."""
    groups: torch.Tensor
    """int64 [answers], equal for the answers to one prompt of the iteration, from 0 without gaps."""
    given: torch.Tensor
    """float64 [answers], what was found for the prompt by itself: its greedy answer's score, or V*; NaN where nothing was."""
    running_mean: float = 0.0
    """Of the rewards of earlier iterations; 0 in the first."""

    @property
    def counts(self) -> torch.Tensor:
        """Answers of each group, int64 [groups]."""
        return torch.bincount(self.groups)


def group_sums(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Sum over the answers of each group, [answers] to [groups]."""
    size = int(groups.max()) + 1 if len(groups) else 0
    return values.new_zeros(size).index_add_(0, groups, values)


def group_means(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean over the answers of each group, handed to each of them: [answers] to [answers]."""
    counts = torch.bincount(groups).to(values.dtype)
    return (group_sums(values, groups) / counts)[groups]


def group_spreads(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Largest less smallest of each group, float64 [answers] to [groups]."""
    size = int(groups.max()) + 1 if len(groups) else 0
    values = values.double()
    largest = values.new_full((size,), -torch.inf).scatter_reduce_(0, groups, values, "amax")
    smallest = values.new_full((size,), torch.inf).scatter_reduce_(0, groups, values, "amin")
    return largest - smallest
