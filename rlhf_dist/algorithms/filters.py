"""Which answers count, and how those that were cut are scored."""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.answers import NO_SPREAD, group_spreads


def has_signal(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Whether the scores of a prompt's answers differ, bool [groups] (DAPO's dynamic sampling, arXiv:2503.14476, eq. 11).

    Args:
        scores: [answers].
        groups: int64 [answers], from 0 without gaps.
    """
    return group_spreads(scores, groups) > NO_SPREAD


def overlong_ramp(length: int, *, longest: int, share: float, penalty: float) -> float:
    """What an answer's length adds to its score: 0 up to longest (1 - share), from there down to -penalty (eq. 13 there).

    Args:
        length: its tokens.
        longest: most tokens that an answer may have.
        share: the last part of them, over which the score falls; 0: no ramp.
        penalty: taken off at the longest.
    """
    if not share:
        return 0.0
    over = length - longest * (1.0 - share)
    return -penalty * min(max(over / (longest * share), 0.0), 1.0)
