"""The PPO update on one rank, in the order of the algorithm. Collectives are sums that the caller provides."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_dist.algorithms.advantages import moments, whiten
from rlhf_dist.algorithms.estimators import Estimator, Trajectories
from rlhf_dist.algorithms.kl import k1, k3, shaped_rewards
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.algorithms.surrogates import Surrogate
from rlhf_dist.algorithms.value_losses import explained_variance_sums, value_loss_sum
from rlhf_dist.config import PPO
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import PackedBatch

PPO_KL = "actor/ppo_kl"
"""KL of the old to the new policy, per token, over the whole update; `max_policy_kl` bounds each epoch's own."""
PROBS_DIFF = "training/rollout_probs_diff_mean"
"""Distance of the engine's and the learner's probabilities of a token, before the first step, over the whole batch."""
ROUNDING = 1e-12
"""Variance over squared mean, up to which fp32 returns are all the same."""
Also = Callable[[int], tuple[float, float]]
"""Adds gradients of another loss to the policy's before the optimiser step of that number; its sum, and its tokens."""


@dataclass(frozen=True)
class Ranks:
    """The data-parallel ranks, and how a float64 vector is summed over them."""

    number: int = 1
    sum: Callable[[torch.Tensor], torch.Tensor] = lambda vector: vector


@dataclass(frozen=True)
class Method:
    """What is estimated, and what is minimised."""

    estimator: Estimator
    surrogate: Surrogate


@dataclass
class PackedExperience:
    """One packed micro-batch of finished samples; token tensors are flat [tokens] over the sampled tokens."""

    packed: PackedBatch
    lengths: torch.Tensor
    """[sequences], sampled tokens of each."""
    groups: torch.Tensor
    """[sequences], equal for the samples of one prompt."""
    rewards: torch.Tensor
    """[tokens], after clipping and penalties; the score of an answer comes with its last token."""
    rollout_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    log_probs: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None


@dataclass
class Models:
    """The policy and, unless it has a value head or nobody needs values, the critic."""

    policy: TrainedModel
    critic: TrainedModel | None
    also: Also | None = None
    """Another loss of the policy's, for PPO-ptx."""


def update(
    models: Models,
    mini_batches: Sequence[Sequence[PackedExperience]],
    method: Method,
    settings: PPO,
    *,
    kl_coef: float,
    reuse_rollout_log_probs: bool,
    ranks: Ranks,
) -> dict[str, float]:
    """Old log-probs and values, rewards, advantages, then epochs over mini-batches.

    Args:
        models: what is trained.
        mini_batches: this rank's micro-batches of each mini-batch; as many on every rank.
        method: what is estimated and minimised.
        settings: PPO's numbers.
        kl_coef: weight of the KL penalty now.
        reuse_rollout_log_probs: the only optimiser step sees the policy that generated the samples, untruncated, so
            the ratio is 1 by construction and a pass for old log-probs would compute what is known.
        ranks: data-parallel ranks.

    Returns:
        metrics of the whole batch, the same on every rank.
    """
    everything = [micro for mini in mini_batches for micro in mini]
    recorder = _Recorder(ranks)
    _look_back(models, everything, reuse_rollout_log_probs)
    _estimate_advantages(everything, method.estimator, settings, kl_coef, ranks)
    _record_batch(recorder, everything, kl_coef)
    if not reuse_rollout_log_probs:  # else the only step knows the learner's own
        for micro in everything:
            told = _probs_difference(micro.log_probs, micro.rollout_log_probs)
            recorder.means(micro.log_probs.numel(), {PROBS_DIFF: told})
    step = 0
    for epoch in range(settings.epochs):
        began = recorder.sum_of(PPO_KL)
        for mini in mini_batches:
            tokens = float(ranks.sum(torch.tensor([sum(float(m.lengths.sum()) for m in mini)], dtype=torch.float64)))
            for micro in mini:
                old = None if reuse_rollout_log_probs else micro.log_probs
                _accumulate(models, micro, method.surrogate, settings, old, ranks.number / tokens, recorder)
            if models.also is not None:
                loss, count = models.also(step)
                recorder.means(count, {"actor/ptx_loss": torch.tensor(loss)})
            step += 1
            recorder.step("actor", models.policy.step())
            if models.critic is not None:
                recorder.step("critic", models.critic.step())
        recorder.metrics["actor/epochs"] = epoch + 1.0
        if settings.max_policy_kl is not None:
            # Of this epoch alone: earlier ones, the first step's 0 above all, would hide how far the policy is now.
            total, count = ranks.sum(recorder.sum_of(PPO_KL) - began)
            if total / count > settings.max_policy_kl:
                _skip(models, settings.epochs * len(mini_batches) - step)
                break
    return recorder.result()


def _skip(models: Models, steps: int) -> None:
    """Let the schedules of what is trained be where the steps that are left out would have brought them."""
    for model in (models.policy, models.critic):
        if model is not None:
            model.skip(steps)


@torch.no_grad()
def _look_back(models: Models, micros: Sequence[PackedExperience], reuse_rollout_log_probs: bool) -> None:
    """Log-probs and values under the models as they are before the update."""
    has_head = models.policy.module.value_head is not None
    for micro in micros:
        micro.log_probs = micro.rollout_log_probs
        if models.critic is not None:
            micro.values = models.critic(micro.packed)
        if has_head or not reuse_rollout_log_probs:
            log_probs, _, head = models.policy(micro.packed)
            micro.values = head if has_head else micro.values
            micro.log_probs = micro.rollout_log_probs if reuse_rollout_log_probs else log_probs


def _estimate_advantages(
    micros: Sequence[PackedExperience], estimator: Estimator, settings: PPO, kl_coef: float, ranks: Ranks
) -> None:
    """Of all this rank's samples together, since the samples of a prompt may lie in several micro-batches."""
    kl = [k1(micro.log_probs, micro.ref_log_probs) for micro in micros]
    rewards = [shaped_rewards(micro.rewards, own, coefficient=kl_coef) for micro, own in zip(micros, kl, strict=True)]
    values = [micro.values for micro in micros if micro.values is not None]
    advantages, returns = estimator(
        Trajectories(
            torch.cat(rewards),
            torch.cat([micro.lengths for micro in micros]),
            torch.cat([micro.groups for micro in micros]),
            torch.cat(values) if estimator.needs_values else None,
        )
    )
    sizes = [len(own) for own in kl]
    for micro, own in zip(micros, advantages.split(sizes), strict=True):
        micro.advantages = own
    if returns is not None:
        for micro, own in zip(micros, returns.split(sizes), strict=True):
            micro.returns = own
    if settings.whiten_advantages:
        total = ranks.sum(torch.stack([moments(micro.advantages) for micro in micros]).sum(0).cpu())
        for micro in micros:
            micro.advantages = whiten(micro.advantages, total.to(micro.advantages.device))


def _accumulate(
    models: Models,
    micro: PackedExperience,
    surrogate: Surrogate,
    settings: PPO,
    old: torch.Tensor | None,
    scale: float,
    recorder: _Recorder,
) -> None:
    """Gradients of one micro-batch; `scale` turns its sums into its share of the whole mini-batch's mean.

    Without `old` log-probs the ratio is 1 by construction.
    """
    log_probs, entropy, head = models.policy(micro.packed, entropy_grad=settings.entropy_coef > 0)
    reused = old is None
    old = log_probs.detach() if old is None else old
    pg_loss, sums = surrogate(log_probs, old, micro.advantages, micro.lengths)
    loss = pg_loss - settings.entropy_coef * entropy.sum() if settings.entropy_coef > 0 else pg_loss
    log_ratio = (log_probs - old).detach()
    found = {
        "actor/pg_loss": pg_loss,
        **{f"actor/{name}": value for name, value in sums.items()},
        PPO_KL: (torch.expm1(log_ratio) - log_ratio).sum(),
        "actor/entropy": entropy.sum(),
    }
    if reused:
        found[PROBS_DIFF] = _probs_difference(log_probs.detach(), micro.rollout_log_probs)
    if micro.returns is not None and micro.values is not None:
        if models.critic is not None:
            models.policy.backward(loss * scale)
        values = head if models.critic is None else models.critic(micro.packed)
        vf_loss, vf_clipped = value_loss_sum(values, micro.values, micro.returns, clip_value=settings.clip_value)
        found |= {"critic/vf_loss": vf_loss, "critic/vf_clipfrac": vf_clipped}
        if models.critic is not None:
            models.critic.backward(vf_loss * scale)
        else:
            models.policy.backward((loss + settings.value_coef * vf_loss) * scale)
    else:
        models.policy.backward(loss * scale)
    recorder.means(log_probs.numel(), found)


def _probs_difference(log_probs: torch.Tensor, rollout_log_probs: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the distance of two probabilities of each."""
    return (log_probs.exp() - rollout_log_probs.exp()).abs().sum()


def _record_batch(recorder: _Recorder, micros: Sequence[PackedExperience], kl_coef: float) -> None:
    """What is known about the batch before the first step."""
    for micro in micros:
        kl_per_sample = segment_sums(k1(micro.log_probs, micro.ref_log_probs), micro.lengths)
        scores = segment_sums(micro.rewards, micro.lengths)
        recorder.means(micro.log_probs.numel(), {"actor/ref_kl": k3(micro.log_probs, micro.ref_log_probs).sum()})
        recorder.means(
            len(micro.lengths),
            {
                "objective/kl": kl_per_sample.sum(),
                "objective/scores": scores.sum(),
                "objective/non_score_reward": -kl_coef * kl_per_sample.sum(),
                "objective/rlhf_reward": (scores - kl_coef * kl_per_sample).sum(),
                "objective/entropy": -micro.log_probs.sum(),
            },
        )
        if micro.values is not None and micro.returns is not None:
            told = {"critic/values/mean": micro.values.sum(), "critic/returns/mean": micro.returns.sum()}
            recorder.means(micro.values.numel(), told)
            recorder.variance += explained_variance_sums(micro.values, micro.returns).flatten().cpu()


class _Recorder:
    """Sums and counts of this rank, added over ranks once at the end."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = {}
        self.variance = torch.zeros(6, dtype=torch.float64)

    def means(self, count: float, sums: Mapping[str, torch.Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] += float(value.detach())
            self.counts[name] += count

    def step(self, model: str, facts: dict[str, float]) -> None:
        """Take what an optimiser step says: the gradient's norm is a mean over the steps, the learning rate the last one's."""
        self.means(1.0, {f"{model}/grad_norm": torch.tensor(facts["grad_norm"], dtype=torch.float64)})
        self.metrics[f"{model}/lr"] = facts["lr"]

    def sum_of(self, name: str) -> torch.Tensor:
        """This rank's sum so far, and its count, float64 [2]."""
        return torch.tensor([self.sums.get(name, 0.0), self.counts.get(name, 0.0)], dtype=torch.float64)

    def result(self) -> dict[str, float]:
        names = sorted(self.sums)
        vector = [self.sums[name] for name in names] + [self.counts[name] for name in names]
        total = self.ranks.sum(torch.cat([torch.tensor(vector, dtype=torch.float64), self.variance]))
        sums, counts, variance = total.split([len(names), len(names), 6])
        means = {name: float(a / b) for name, a, b in zip(names, sums, counts, strict=True)}
        explained = {"critic/vf_explained_var": _explained(variance.view(2, 3))} if variance.any() else {}
        return {**means, **self.metrics, **explained}


def _explained(moments_of: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); NaN where returns vary by rounding alone."""
    (n, error, error2), (_, returns, returns2) = moments_of
    mean = returns / n
    variance = returns2 / n - mean**2
    return float(1.0 - (error2 / n - (error / n) ** 2) / variance) if variance > ROUNDING * mean**2 else math.nan
