"""What advantages are divided by. Each is a function of centred rewards and `AnswerBatch`, [answers] to [answers].

A spread of at most `NO_SPREAD` is none: then advantages are 0 instead of noise over noise. Standard deviations have n - 1
below them, as TRL's, verl's and OpenRLHF's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rlhf_dist.algorithms.answers import NO_SPREAD, AnswerBatch, group_means, group_spreads, group_sums

Scale = Callable[[torch.Tensor, AnswerBatch], torch.Tensor]


def none(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor:
    """As they are."""
    return centred


def group(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor:
    """Over the standard deviation of R in the prompt's group (GRPO, arXiv:2402.03300)."""
    deviations = answers.rewards - group_means(answers.rewards, answers.groups)
    squares = group_sums(deviations.square(), answers.groups)
    std = (squares / (answers.counts - 1).clamp(min=1)).sqrt()
    spread = group_spreads(answers.rewards, answers.groups) > NO_SPREAD
    return torch.where(spread[answers.groups], centred / std[answers.groups], 0.0)


def batch(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor:
    """Over the standard deviation of all advantages of the iteration (Lite PPO, arXiv:2508.08221; arXiv:2510.13786)."""
    if len(centred) < 2 or float(centred.max() - centred.min()) <= NO_SPREAD:
        return torch.zeros_like(centred)
    return centred / centred.std()


SCALES: Mapping[str, Scale] = {"none": none, "group": group, "batch": batch}
