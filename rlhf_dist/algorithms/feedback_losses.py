"""Losses on human feedback, one number per comparison, ranking or score; the caller weighs, sums and divides them.

Throughout, r is a reward in logits: P(a over b) = sigmoid(scale (r_a - r_b)), and a score in [0, 1] is sigmoid(r).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rlhf_dist.algorithms.ragged import padded


def comparison_losses(
    a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor, margins: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of Bradley and Terry's model (1952) with soft labels, [comparisons].

    With d = scale (r_a - r_b): -y log sigmoid(d - m) - (1 - y) log sigmoid(-d - m). A label of 1 is the reward-model loss of
    Ouyang et al. 2022 (arXiv:2203.02155, equation 1), m the margin of Touvron et al. 2023 (arXiv:2307.09288, equation 2).

    Args:
        a: [comparisons], rewards of the first answers.
        b: [comparisons], of the second.
        labels: [comparisons], y in [0, 1]: how likely people prefer the first; 0.5 is a tie.
        margins: [comparisons], at least 0, in logits: by how much the preferred answer should win.
        scale: how consistently people choose what is better.
    """
    assert a.shape == b.shape == labels.shape == margins.shape, (a.shape, b.shape, labels.shape, margins.shape)
    difference = scale * (a - b)
    return -labels * F.logsigmoid(difference - margins) - (1 - labels) * F.logsigmoid(-difference - margins)


def ranking_losses(rewards: torch.Tensor, lengths: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """Negative log-likelihood of rankings under Plackett (1975) and Luce (1959), [rankings].

    -sum_i (s_i - log sum_{j >= i} exp s_j) with s = scale r, best answer first. Two answers give Bradley and Terry's loss.

    Args:
        rewards: [answers], one ranking after the other, each from best to worst.
        lengths: [rankings], answers of each.
        scale: how consistently people choose what is better.
    """
    assert rewards.shape == (int(lengths.sum()),), (rewards.shape, lengths.sum())
    strengths, mask = padded(scale * rewards, lengths)
    strengths = strengths.masked_fill(~mask, torch.finfo(strengths.dtype).min / 2)  # -inf would make the gradient NaN
    remaining = torch.logcumsumexp(strengths.flip(1), dim=1).flip(1)
    return torch.where(mask, remaining - strengths, torch.zeros_like(remaining)).sum(1)


def score_losses(rewards: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of sigmoid(r) against a score in [0, 1], [scores]."""
    assert rewards.shape == labels.shape, (rewards.shape, labels.shape)
    return (torch.sigmoid(rewards) - labels).square()


def centring_losses(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(r_a + r_b)^2, which only fixes the free constant of a comparison (Eisenstein et al. 2023, arXiv:2312.09244)."""
    return (a + b).square()


def dpo_losses(
    log_ratios_a: torch.Tensor,
    log_ratios_b: torch.Tensor,
    labels: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7) with soft labels, [comparisons].

    Bradley-Terry's loss on the implicit rewards beta log(policy / reference). Smoothing moves each label towards the other
    side: y (1 - e) + (1 - y) e (Mitchell 2023, "A note on DPO with noisy preferences").

    Args:
        log_ratios_a: [comparisons], log-prob of the first answer under the policy less that under the reference.
        log_ratios_b: [comparisons], of the second.
        labels: [comparisons], how likely people prefer the first.
        beta: strength of the pull to the reference.
        label_smoothing: share of labels taken to be wrong.
    """
    smoothed = labels * (1 - label_smoothing) + (1 - labels) * label_smoothing
    return comparison_losses(beta * log_ratios_a, beta * log_ratios_b, smoothed, torch.zeros_like(labels))


def ipo_losses(
    log_ratios_a: torch.Tensor, log_ratios_b: torch.Tensor, labels: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """Identity preference optimisation (Azar et al. 2024, arXiv:2310.12036, equation 17) with soft labels, [comparisons].

    (h - 1 / (2 beta))^2 with h = log_ratio_a - log_ratio_b for label 1, the mirror image for label 0, and their mixture
    between. The log-ratios are means over tokens, as in the authors' correction, so that length does not matter.
    """
    gap = log_ratios_a - log_ratios_b
    target = 1 / (2 * beta)
    return labels * (gap - target).square() + (1 - labels) * (gap + target).square()
