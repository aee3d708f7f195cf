"""KL estimators, where the KL is taken off, and its coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from rlhf_dist.algorithms.bounds import LEAST, MOST, MOST_NATS
from rlhf_dist.algorithms.ragged import sums_to_go


def k1(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """Log p - log q on samples of p: unbiased estimate of KL(p, q) (Schulman 2020, "Approximating KL Divergence")."""
    return log_probs - ref_log_probs


def k2(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """(log p - log q)^2 / 2 on samples of p: biased, low variance; its gradient is that of KL(p, q) (same source)."""
    return 0.5 * (log_probs - ref_log_probs).square()


def k3(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """(r - 1) - log r with r = q / p on samples of p: unbiased, never negative, lower variance (same source).

    Log r is cut to ± `MOST_NATS`, beyond which it would soon be infinite. Its own gradient is that of KL(q, p).
    """
    log_ratio = (ref_log_probs - log_probs).clamp(-MOST_NATS, MOST_NATS)
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_losses(
    new: torch.Tensor,
    old: torch.Tensor,
    ref_log_probs: torch.Tensor,
    lengths: torch.Tensor,
    *,
    estimator: str,
    exact: bool,
) -> torch.Tensor:
    """The KL to the reference as a loss, [tokens].

    The expectation of an estimate f has the gradient E[grad f + F grad log pi], where F sums f from the token on: what comes
    later depends on the token too. With `exact` that is what the loss has, r (f + the sum of f over later tokens, held fixed),
    r = pi / pi_old; its value is then no estimate of the KL. Else it is f, with f's own gradient, as papers set it: of k1 that
    is 0 in expectation, and of all of them the later tokens are missing (arXiv:2512.21852).

    Args:
        new: [tokens] log-probs under the policy being trained.
        old: [tokens] under the one that sampled, no gradient.
        ref_log_probs: [tokens] under the reference, no gradient.
        lengths: [answers], tokens of each.
        estimator: k1, k2 or k3.
        exact: with the score term.
    """
    own = ESTIMATORS[estimator](new, ref_log_probs)
    if not exact:
        return own
    held = own.detach()
    later = sums_to_go(held, lengths) - held
    ratio = (new - old).clamp(-MOST_NATS, MOST_NATS).exp()
    return ratio * (own + later)


def shaped_rewards(rewards: torch.Tensor, kl: torch.Tensor, *, coefficient: float) -> torch.Tensor:
    """Token rewards with the KL penalty: r_t - coefficient * kl_t (arXiv:1909.08593, section 2.1).

    With -log pi for the KL it is the reward of maximum entropy (arXiv:1812.05905, equation 1): the KL to the uniform policy.

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
        """Start from `coefficient`; `target` in nats, per answer or per token as `update` is told; `horizon` in samples."""
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Move the coefficient after a batch with mean KL `kl`; a KL that is no number moves nothing."""
        if self.target is None or not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        moved = self.coefficient * math.exp(error * min(1.0, samples / self.horizon))
        self.coefficient = min(max(moved, LEAST), MOST)
