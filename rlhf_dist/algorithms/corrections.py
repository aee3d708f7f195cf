"""Samples of another policy than the one that learns: weights, rejection, and how far apart the two are.

mu sampled, pi_p is the proximal policy, from which ratios start. The objective's ratio is pi / pi_p; what makes up for mu is
rho = pi_p / mu, held fixed: L = rho min(r A, clip(r) A) (decoupled PPO, Hilton et al. 2021, arXiv:2110.00641). Everything here is
made from log-probs that the store holds, and nothing of it is stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.config.algorithm import Correction


class Corrected(NamedTuple):
    """What becomes of each token's loss."""

    weights: torch.Tensor
    """[tokens], by which losses are weighed, 1 where nothing is."""
    kept: torch.Tensor
    """bool [tokens], false in answers that were left out."""


def corrected(proximal: torch.Tensor, rollout: torch.Tensor, lengths: torch.Tensor, settings: Correction) -> Corrected:
    """Weights and rejections of a correction.

    Token weights correct actions and not states, so they stay biased; those of whole answers are exact without a bound, and die
    with length (ESS = exp(-T s^2) for log-ratios of deviation s). Bounds trade bias for variance (arXiv:2510.08666 and others:
    truncated; IcePop and MIS: zeroed outside).

    Args:
        proximal: [tokens] log pi_p.
        rollout: [tokens] log mu.
        lengths: [answers], tokens of each.
        settings: which weights, and which bounds.
    """
    log_rho = proximal - rollout
    sums = segment_sums(log_rho, lengths)
    own = torch.repeat_interleave(sums, lengths) if settings.weight == "sequence" else log_rho
    rho = own.clamp(-MOST_NATS, MOST_NATS).exp()
    if settings.weight == "none":
        weights = torch.ones_like(log_rho)
    elif settings.outside == "truncate":
        weights = rho.clamp(max=settings.cap)
    else:
        weights = torch.where((rho >= settings.floor) & (rho <= settings.cap), rho, 0.0)
    kept = torch.ones(len(lengths), dtype=torch.bool, device=lengths.device)
    if settings.reject is not None:
        means = (sums / lengths.clamp(min=1)).exp()
        kept &= (means >= settings.reject[0]) & (means <= settings.reject[1])
    if settings.veto is not None:
        kept &= segment_sums((log_rho.exp() < settings.veto).float(), lengths) == 0
    return Corrected(weights, torch.repeat_interleave(kept, lengths))
