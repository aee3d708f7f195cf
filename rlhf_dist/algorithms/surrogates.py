"""What the policy minimises: from log-probs and advantages to a loss for every token.

A function of (new, old, advantages, lengths): [tokens] log-probs under the policy being trained, [tokens] under the one that its
ratios start from (no gradient), [tokens] advantages, and [answers] tokens of each. At ratio 1 each has the gradient -A of log pi.
Losses of whole answers stand on each of their tokens, so that a mean over an answer's tokens is the answer's loss.

Log-ratios are cut to ± `MOST_NATS` before they are exponentiated, outside of which nothing is learnt; who calls counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.ragged import segment_sums


class Losses(NamedTuple):
    """Of every token."""

    loss: torch.Tensor
    """[tokens]."""
    clipped: torch.Tensor
    """bool [tokens], where a bound keeps the token from being learnt from as it would be without."""


Surrogate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Losses]


def cut(log_ratio: torch.Tensor) -> torch.Tensor:
    """Log-ratios within ± `MOST_NATS`."""
    return log_ratio.clamp(-MOST_NATS, MOST_NATS)


def plain(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> Losses:
    """-A log pi (Williams 1992)."""
    return Losses(-advantages * new, torch.zeros_like(new, dtype=torch.bool))


def clip(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Losses:
    """The larger of the plain and the clipped loss (arXiv:1707.06347, equation 7; two sides: arXiv:2503.14476, equation 8).

    They are -A r, and -A times r within 1 - low and 1 + high. With `dual`, where A < 0, it is at most -A dual (Ye et al. 2020,
    arXiv:1912.09729, equation 7).
    """
    return _clipped(cut(new - old).exp(), advantages, low=low, high=high, dual=dual)


def sequence_clip(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor, *, low: float, high: float
) -> Losses:
    """The same with s = exp(mean over the answer of log r) in place of r (GSPO, arXiv:2507.18071, equations 5 and 7)."""
    means = segment_sums(new - old, lengths) / lengths.clamp(min=1)
    ratio = torch.repeat_interleave(cut(means).exp(), lengths)
    return _clipped(ratio, advantages, low=low, high=high, dual=None)


def weight_cap(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor, *, cap: float
) -> Losses:
    """-A min(r, cap) log pi, the weight held fixed (CISPO, arXiv:2506.13585, equation 4; cap: arXiv:2510.13786)."""
    ratio = cut(new - old).detach().exp()
    return Losses(-advantages * ratio.clamp(max=cap) * new, ratio > cap)


def soft_gate(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
    *,
    temperature: float,
    temperature_negative: float,
) -> Losses:
    """-A (4 / t) sigmoid(t (r - 1)), t by the sign of A (SAPO, arXiv:2511.20347, equation 5): a clip without an edge."""
    t = torch.full_like(new, temperature_negative).masked_fill(advantages > 0, temperature)
    gate = 4.0 / t * torch.sigmoid(t * (cut(new - old).exp() - 1.0))
    return Losses(-advantages * gate, torch.zeros_like(new, dtype=torch.bool))


def squared(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor, *, tau: float
) -> Losses:
    """(A - tau log(pi / anchor))^2 / (2 tau) of each answer (arXiv:2501.12599, equation 3; arXiv:2505.20686, equation 5).

    `old` is the anchor. Over 2 tau its gradient is -(A - tau log ratio) of log pi, so that learning rates compare with others'.
    """
    ratios = segment_sums(new - old, lengths)
    a = segment_sums(advantages, lengths) / lengths.clamp(min=1)
    return Losses(
        torch.repeat_interleave((a - tau * ratios).square() / (2 * tau), lengths),
        torch.zeros_like(new, dtype=torch.bool),
    )


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, *, low: float, high: float, dual: float | None) -> Losses:
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - low, 1 + high)
    loss, clipped = torch.maximum(unclipped, bounded), bounded > unclipped
    if dual is not None:
        most = -advantages * dual
        beyond = (advantages < 0) & (loss > most)
        loss, clipped = torch.where(beyond, most, loss), clipped | beyond
    return Losses(loss, clipped)
