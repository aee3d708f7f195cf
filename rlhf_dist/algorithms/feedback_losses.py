"""Losses on human feedback, one number per comparison, ranking or score; the caller weighs, sums and divides them.

Throughout, r is a reward in logits: P(a over b) = sigmoid(scale (r_a - r_b)), and a score in [0, 1] is sigmoid(r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rlhf_dist.algorithms.ragged import padded

KTO_BALANCE = 4 / 3
"""At most so many times what undesirable answers weigh together, and at least as much, desirable ones should weigh."""


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


def simpo_losses(
    log_probs_a: torch.Tensor,
    log_probs_b: torch.Tensor,
    labels: torch.Tensor,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, equation 6) with soft labels, [comparisons].

    -log sigmoid(beta (l_a - l_b) - gamma) for label 1, l the mean log-prob of an answer's tokens; Bradley-Terry's loss with a
    margin, so the mirror image for label 0, and their mixture between. No reference takes part. Smoothing as for DPO.

    Args:
        log_probs_a: [comparisons], mean log-prob per token of the first answer.
        log_probs_b: [comparisons], of the second.
        labels: [comparisons], how likely people prefer the first.
        beta: scale of the rewards beta l.
        gamma: by how much the preferred answer's reward should win.
        label_smoothing: share of labels taken to be wrong.
    """
    smoothed = labels * (1 - label_smoothing) + (1 - labels) * label_smoothing
    return comparison_losses(log_probs_a, log_probs_b, smoothed, torch.full_like(labels, gamma), scale=beta)


def log_odds(log_probs: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(log_probs), any shape.

    Finite, with a gradient of zero, where p rounds to 1: a short answer that is learnt by heart has a mean log-prob of 0.
    """
    below = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return below - torch.log(-torch.expm1(below))


def orpo_losses(
    log_probs_a: torch.Tensor, log_probs_b: torch.Tensor, labels: torch.Tensor, *, odds_coef: float
) -> torch.Tensor:
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7), [comparisons].

    -l_a - odds_coef log sigmoid(log odds_a - log odds_b) for label 1: the preferred answer's negative log-likelihood and the
    log odds ratio, both of l, the mean log-prob of an answer's tokens (equation 2), odds = e^l / (1 - e^l). The mirror image for
    label 0, and their mixture between: then both answers are imitated, each as often as it is preferred.

    Args:
        log_probs_a: [comparisons], mean log-prob per token of the first answer.
        log_probs_b: [comparisons], of the second.
        labels: [comparisons], how likely people prefer the first.
        odds_coef: weight of the odds ratio, the paper's lambda.
    """
    ratios = comparison_losses(log_odds(log_probs_a), log_odds(log_probs_b), labels, torch.zeros_like(labels))
    return -labels * log_probs_a - (1 - labels) * log_probs_b + odds_coef * ratios


def kto_losses(
    log_ratios: torch.Tensor,
    labels: torch.Tensor,
    *,
    reference_point: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, equation 7) with soft labels, [answers].

    w - v with v = w_D sigmoid(beta (h - z)) of a desirable answer, label 1, and v = w_U sigmoid(beta (z - h)) of an undesirable
    one, label 0; their mixture between, of which one half each teaches nothing where the weights are equal.

    Args:
        log_ratios: [answers], h: log-prob of the whole answer under the policy less that under the reference.
        labels: [answers], how likely people find it desirable.
        reference_point: z, see `kto_reference_point`.
        beta: strength of the pull to the reference.
        desirable_weight: w_D.
        undesirable_weight: w_U.
    """
    assert log_ratios.shape == labels.shape, (log_ratios.shape, labels.shape)
    lead = beta * (log_ratios - reference_point)
    return desirable_weight * labels * torch.sigmoid(-lead) + undesirable_weight * (1 - labels) * torch.sigmoid(lead)


def kto_reference_point(log_ratios: Sequence[float]) -> float:
    """KTO's z: max(0, mean), the estimated KL from the reference; 0 where there is nothing to estimate it from.

    Args:
        log_ratios: h of answers to other prompts than theirs; all of an optimiser step, since the maximum makes it depend on
            which are taken together.
    """
    return max(0.0, math.fsum(log_ratios) / len(log_ratios)) if log_ratios else 0.0


def kto_weights(
    desirable: float, undesirable: float, *, given: tuple[float | None, float | None] = (None, None)
) -> tuple[float, float]:
    """KTO's weights of desirable and undesirable answers, by the paper's rule (equation 8).

    w_D n_D / (w_U n_U) in [1, 4/3], with weights as near to 1 as can be, and none below it where both are free.

    Args:
        desirable: n_D, how many desirable answers there are; those with soft labels in part.
        undesirable: n_U, likewise; where either is 0 there is nothing to balance.
        given: weights that are settled, None where the rule is to find one.
    """
    own, other = given
    if not desirable or not undesirable or (own is not None and other is not None):
        return own or 1.0, other or 1.0
    share = desirable / undesirable
    if own is None:
        found = min(max(1.0, (other or 1.0) / share), (other or 1.0) * KTO_BALANCE / share)
        if other is not None or found >= 1:
            return found, other or 1.0
    weighted = (own or 1.0) * share
    return own or 1.0, min(max(1.0, weighted / KTO_BALANCE), weighted)
