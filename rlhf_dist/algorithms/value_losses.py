"""The critic's loss and how well it foresees, as sums over tokens, so that the caller divides once by the whole batch's count."""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.advantages import moments


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


def explained_variance_sums(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Sums from which 1 - Var(returns - values) / Var(returns) is made: moments of both, float64 [2, 3]."""
    return torch.stack([moments(returns - values), moments(returns)])
