"""KL estimators, the KL-shaped reward, and the adaptive coefficient."""

from __future__ import annotations

import math

import torch

from rlhf_dist.algorithms.bounds import LEAST, MOST, MOST_NATS


def k1(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """Log p - log q on samples of p: unbiased estimate of KL(p, q) (Schulman 2020, "Approximating KL Divergence")."""
    return log_probs - ref_log_probs


def k3(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """(r - 1) - log r with r = q / p on samples of p: unbiased, never negative, lower variance (same source).

    Log r is cut to ± `MOST_NATS`, beyond which it would soon be infinite.
    """
    log_ratio = (ref_log_probs - log_probs).clamp(-MOST_NATS, MOST_NATS)
    return torch.expm1(log_ratio) - log_ratio


def shaped_rewards(rewards: torch.Tensor, kl: torch.Tensor, *, coefficient: float) -> torch.Tensor:
    """Token rewards with the KL penalty: r_t - coefficient * kl_t (arXiv:1909.08593, section 2.1).

    Args:
        rewards: [tokens], received with each token; the score of the whole answer comes with the last.
        kl: [tokens], per-token KL to the reference.
        coefficient: weight of the KL penalty.
    """
    assert rewards.shape == kl.shape, (rewards.shape, kl.shape)
    return rewards - coefficient * kl


class AdaptiveKL:
    """Proportional control of the KL coefficient, in logarithms (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2), coefficient *= exp(e * samples / horizon), within `LEAST` and `MOST`. The paper's factor
    is 1 + e * samples / horizon, which this agrees with to first order and which is negative for samples / horizon above 5. One
    batch counts as one horizon at most. Without a target the coefficient stays fixed.
    """

    def __init__(self, coefficient: float, *, target: float | None, horizon: int) -> None:
        """Start from `coefficient`; `target` in nats per sample, `horizon` in samples."""
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Move the coefficient after a batch with mean KL `kl` per sample; a KL that is no number moves nothing."""
        if self.target is None or not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        moved = self.coefficient * math.exp(error * min(1.0, samples / self.horizon))
        self.coefficient = min(max(moved, LEAST), MOST)
