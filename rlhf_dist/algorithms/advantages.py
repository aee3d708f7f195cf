"""Generalised advantage estimation and whitening."""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.answers import NO_SPREAD
from rlhf_dist.algorithms.ragged import padded


def gae(
    rewards: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, *, gamma: float, lam: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of finished sequences (Schulman et al. 2016, arXiv:1506.02438, equations 11 to 16).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}, with V = A = 0 after the last token, which
    ends the episode. Returns are A_t + V_t, the critic's targets. One scan over time serves all sequences.

    Args:
        rewards: [tokens], reward received with each sampled token.
        values: [tokens], the critic's value of the state before that token.
        lengths: [sequences], sampled tokens per sequence, each at least 1.
        gamma: discount per token.
        lam: GAE's lambda, one for all or [sequences].

    Returns:
        advantages [tokens] and returns [tokens].
    """
    assert rewards.shape == values.shape == (int(lengths.sum()),), (rewards.shape, values.shape, lengths.sum())
    reward, mask = padded(rewards, lengths)
    value, _ = padded(values, lengths)
    advantage = torch.zeros_like(reward)
    running = reward.new_zeros(len(lengths))
    next_value = reward.new_zeros(len(lengths))
    for t in range(reward.shape[1] - 1, -1, -1):
        delta = reward[:, t] + gamma * next_value - value[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        next_value = value[:, t] * mask[:, t]
        advantage[:, t] = running
    advantages = advantage[mask]
    return advantages, advantages + values


def moments(x: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares of x as float64 [3]; those of several ranks add up."""
    x = x.double()
    return torch.stack([torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device), x.sum(), (x * x).sum()])


def whiten(x: torch.Tensor, total: torch.Tensor, *, spread: float, eps: float = 1e-8) -> torch.Tensor:
    """Shift and scale to zero mean and unit variance, where `total` are the `moments` of the whole batch.

    Args:
        x: [tokens].
        total: count, sum and sum of squares of the batch.
        spread: its largest less its smallest; up to `NO_SPREAD` all are equal, and become 0.
        eps: added to the variance.
    """
    if spread <= NO_SPREAD:
        return torch.zeros_like(x)
    count, first, second = total
    mean = first / count
    variance = (second / count - mean * mean).clamp(min=0.0)
    whitened: torch.Tensor = (x - mean) * torch.rsqrt(variance + eps)
    return whitened.to(x.dtype)


def lambda_by_length(lengths: torch.Tensor, alpha: float) -> torch.Tensor:
    """1 - 1 / (alpha T), at least 0, of sequences of T tokens, float [sequences] (VAPO, arXiv:2504.05118, section 4.2)."""
    return (1.0 - 1.0 / (alpha * lengths.float())).clamp(min=0.0)
