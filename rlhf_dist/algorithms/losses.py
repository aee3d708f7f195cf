"""Losses as sums over tokens, so that the caller divides once by the count of the whole batch.

A mean inside a micro-batch would weigh tokens by how they were packed; sums divided by the global count do not depend on
ranks, micro-batches or packing.
"""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.advantages import moments


def policy_loss_sum(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, *, clip_ratio: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate, negated and summed over tokens (Schulman et al. 2017, arXiv:1707.06347, equation 7).

    Args:
        log_probs: [tokens] under the policy being trained.
        old_log_probs: [tokens] under the policy at the start of the update, no gradient.
        advantages: [tokens].
        clip_ratio: epsilon of the paper.

    Returns:
        the summed loss, and sums of `clipped` tokens and of `kl` = (r - 1) - log r of the old to the new policy.
    """
    assert log_probs.shape == old_log_probs.shape == advantages.shape, (log_probs.shape, advantages.shape)
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    with torch.no_grad():
        sums = {"clipped": (clipped > plain).sum().float(), "kl": (torch.expm1(log_ratio) - log_ratio).sum()}
    return torch.maximum(plain, clipped).sum(), sums


def value_loss_sum(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the larger of the plain and the clipped squared error, summed (as in arXiv:2005.12729, appendix).

    Args:
        values: [tokens] from the critic being trained.
        old_values: [tokens] from the critic at the start of the update.
        returns: [tokens], GAE's targets.
        clip_value: the new value counts only within old ± this.

    Returns:
        the summed loss and the number of tokens where the clipped error was the larger.
    """
    assert values.shape == old_values.shape == returns.shape, (values.shape, returns.shape)
    near = old_values + (values - old_values).clamp(-clip_value, clip_value)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, clipped).sum(), (clipped > plain).sum().float()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Sums from which 1 - Var(returns - values) / Var(returns) is made: moments of both, float64 [2, 3]."""
    return torch.stack([moments(returns - values), moments(returns)])
