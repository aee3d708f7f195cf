"""Samples of another policy than the one that learns: weights, rejection, and how far apart the two are.

mu sampled, pi_p is the proximal policy, from which ratios start. The objective's ratio is pi / pi_p; what makes up for mu is
rho = pi_p / mu, held fixed: L = rho min(r A, clip(r) A) (decoupled PPO, Hilton et al. 2021, arXiv:2110.00641). Everything here is
made from log-probs that the store holds, and nothing of it is stored.
"""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.ragged import segment_sums


def importance_weights(log_rho: torch.Tensor, lengths: torch.Tensor, *, level: str) -> torch.Tensor:
    """Rho of each token, or of the answer that it is in, [tokens]; log rho is cut to ± `MOST_NATS`.

    Token weights correct actions and not states, so they stay biased; those of whole answers are exact without a bound, and die
    with length: for log-ratios of deviation s the effective sample size of answers of T tokens is exp(-T s^2).

    Args:
        log_rho: [tokens], log pi_p - log mu.
        lengths: [answers], tokens of each.
        level: `token`, or `sequence`.
    """
    own = log_rho
    if level == "sequence":
        own = torch.repeat_interleave(segment_sums(log_rho, lengths), lengths)
    return own.clamp(-MOST_NATS, MOST_NATS).exp()


def bounded(weights: torch.Tensor, *, cap: float, floor: float, outside: str) -> torch.Tensor:
    """Weights within bounds, which trade bias for variance, [tokens].

    Args:
        weights: [tokens], at least 0.
        cap: the largest.
        floor: the smallest, where those outside are zeroed.
        outside: `truncate`: those above the cap become it; `zero`: those outside floor and cap become 0 (IcePop, MIS).
    """
    if outside == "truncate":
        return weights.clamp(max=cap)
    return torch.where((weights >= floor) & (weights <= cap), weights, 0.0)


def kept_answers(
    log_rho: torch.Tensor, lengths: torch.Tensor, *, reject: tuple[float, float] | None, veto: float | None
) -> torch.Tensor:
    """Answers that are learnt from, bool [answers].

    Args:
        log_rho: [tokens], log pi_p - log mu.
        lengths: [answers], tokens of each.
        reject: bounds of the geometric mean of an answer's rho, outside of which it is left out; None: none.
        veto: an answer with a token of smaller rho is left out; None: none.
    """
    kept = torch.ones(len(lengths), dtype=torch.bool, device=lengths.device)
    if reject is not None:
        means = (segment_sums(log_rho, lengths) / lengths.clamp(min=1)).exp()
        kept &= (means >= reject[0]) & (means <= reject[1])
    if veto is not None:
        kept &= segment_sums((log_rho.exp() < veto).float(), lengths) == 0
    return kept
