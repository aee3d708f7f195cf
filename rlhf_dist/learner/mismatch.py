"""How far the policy that learns is from the one that sampled: what verl's and TRL's users watch, under the names they know.

mu sampled, pi_p is the proximal policy; rho = pi_p / mu of a token, or of a whole answer where correction weighs these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.corrections import bounded, importance_weights, kept_answers
from rlhf_dist.algorithms.kl import k3
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.config import Correction
from rlhf_dist.learner.recorder import Recorder

PROBS_DIFF = "training/rollout_probs_diff"
"""Distance of the engine's and the learner's probabilities of a token, before the first step, over the whole batch."""
WEIGHT = "rollout_corr/rollout_is"
DOUBTS = {
    f"{WEIGHT}_mean": (0.5, 2.0),
    f"{WEIGHT}_eff_sample_size": (0.3, math.inf),
    f"{WEIGHT}_std": (0.0, 1.0),
    "rollout_corr/kl": (-0.1, 0.1),
}
"""Metric to the bounds outside of which an update is not to be trusted (verl's, of its rollout correction)."""


def record(
    recorder: Recorder, proximal: torch.Tensor, rollout: torch.Tensor, lengths: torch.Tensor, settings: Correction
) -> None:
    """Compare the log-probs of a micro-batch's tokens, [tokens] each, of answers of `lengths` tokens."""
    fine = torch.repeat_interleave(segment_sums((~(proximal + rollout).isfinite()).float(), lengths) == 0, lengths)
    own = segment_sums(fine.long(), lengths)
    proximal, rollout, lengths = proximal[fine].double(), rollout[fine].double(), own[own > 0]
    log_rho = (proximal - rollout).clamp(-MOST_NATS, MOST_NATS)
    rho, whole = log_rho.exp(), segment_sums(proximal - rollout, lengths).clamp(-MOST_NATS, MOST_NATS)
    difference, distance = (proximal.exp() - rollout.exp()).abs(), log_rho.abs()
    recorder.means(
        len(rho),
        {
            "rollout_corr/kl": -log_rho.sum(),
            "rollout_corr/k3_kl": k3(rollout, proximal).sum(),
            "rollout_corr/chi2_token": (rho.square() - 1).sum(),
            f"{PROBS_DIFF}_mean": difference.sum(),
            "_probs_diff_squared": difference.square().sum(),
            "sampling/sampling_logp_difference/mean": distance.sum(),
            "sampling/importance_sampling_ratio/mean": rho.sum(),
        },
    )
    means = [segment_sums(each, lengths) / lengths for each in (proximal, rollout)]
    recorder.means(
        len(lengths),
        {
            "rollout_corr/training_ppl": (-means[0]).clamp(max=MOST_NATS).exp().sum(),
            "rollout_corr/rollout_ppl": (-means[1]).clamp(max=MOST_NATS).exp().sum(),
            "rollout_corr/log_ppl_diff": (means[1] - means[0]).sum(),
            "rollout_corr/ppl_ratio": (means[1] - means[0]).clamp(-MOST_NATS, MOST_NATS).exp().sum(),
            "rollout_corr/chi2_seq": ((2 * whole).clamp(max=MOST_NATS).exp() - 1).sum(),
        },
    )
    weights = whole.exp() if settings.weight == "sequence" else rho
    recorder.means(
        len(weights),
        {
            f"{WEIGHT}_mean": weights.sum(),
            "_weights_squared": weights.square().sum(),
            f"{WEIGHT}_ratio_fraction_high": (weights > settings.cap).sum(),
            f"{WEIGHT}_ratio_fraction_low": (weights < 1 / settings.cap).sum(),
        },
    )
    if settings.reject is not None or settings.veto is not None:
        kept = kept_answers(proximal - rollout, lengths, reject=settings.reject, veto=settings.veto)
        recorder.means(len(kept), {"rollout_corr/rollout_rs_masked_fraction": (~kept).sum()})
    for name, values in {
        f"{PROBS_DIFF}_max": difference,
        "sampling/sampling_logp_difference/max": distance,
        "sampling/importance_sampling_ratio/max": rho,
        f"{WEIGHT}_max": weights,
    }.items():
        recorder.largest(name, values)
    recorder.smallest("sampling/importance_sampling_ratio/min", rho)
    recorder.smallest(f"{WEIGHT}_min", weights)


def corrected(
    terms: torch.Tensor, proximal: torch.Tensor, rollout: torch.Tensor, lengths: torch.Tensor, settings: Correction
) -> torch.Tensor:
    """Losses of tokens, weighed by pi_p / mu and without answers that are rejected, [tokens] to [tokens].

    Args:
        terms: [tokens].
        proximal: [tokens] log pi_p, no gradient.
        rollout: [tokens] log mu.
        lengths: [answers], tokens of each.
        settings: which weights, and which bounds.
    """
    log_rho = proximal - rollout
    if settings.weight != "none":
        weights = importance_weights(log_rho, lengths, level=settings.weight)
        terms = terms * bounded(weights, cap=settings.cap, floor=settings.floor, outside=settings.outside)
    kept = kept_answers(log_rho, lengths, reject=settings.reject, veto=settings.veto)
    return torch.where(torch.repeat_interleave(kept, lengths), terms, 0.0)


def completed(facts: Mapping[str, float]) -> dict[str, float]:
    """All metrics, those that are made of others in them, and without what these were made of (names that begin with _)."""
    found = {name: value for name, value in facts.items() if not name.startswith("_")}
    if "_probs_diff_squared" in facts:
        found[f"{PROBS_DIFF}_std"] = _std(facts["_probs_diff_squared"], facts[f"{PROBS_DIFF}_mean"])
    if "_weights_squared" in facts:
        squared, mean = facts["_weights_squared"], facts[f"{WEIGHT}_mean"]
        found[f"{WEIGHT}_std"] = _std(squared, mean)
        found[f"{WEIGHT}_eff_sample_size"] = mean**2 / squared if squared else 0.0
    return found


def doubts(facts: Mapping[str, float]) -> list[str]:
    """Why an update is not to be trusted, in words; nothing where all is well."""
    return [
        f"{name} is {facts[name]:.3g}, outside {low:g} to {high:g}"
        for name, (low, high) in DOUBTS.items()
        if name in facts and not low <= facts[name] <= high
    ]


def _std(squared: float, mean: float) -> float:
    return math.sqrt(max(0.0, squared - mean**2))
