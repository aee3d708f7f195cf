"""The PPO update on one rank, in the order of the algorithm. Collectives are sums that the caller provides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_dist.algorithms.advantages import gae, moments, whiten
from rlhf_dist.algorithms.kl import k1, k3, shaped_rewards
from rlhf_dist.algorithms.losses import explained_variance, policy_loss_sum, value_loss_sum
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.config import PPO
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import PackedBatch

Also = Callable[[int], tuple[float, float]]
"""Adds gradients of another loss to the policy's before the optimiser step of that number; its sum, and its tokens."""

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a float64 vector over all ranks."""


@dataclass
class PackedExperience:
    """One packed micro-batch of finished samples; token tensors are flat [tokens] over the response tokens."""

    packed: PackedBatch
    lengths: torch.Tensor
    """[sequences], response tokens."""
    scores: torch.Tensor
    """[sequences], after clipping and penalties."""
    rollout_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    log_probs: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    values: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass
class Models:
    """The policy and, unless it has a value head, the critic."""

    policy: TrainedModel
    critic: TrainedModel | None
    also: Also | None = None
    """Another loss of the policy's, for PPO-ptx."""

    def values(self, micro: PackedExperience) -> torch.Tensor:
        """The critic's values of a micro-batch, [tokens]."""
        if self.critic is not None:
            values: torch.Tensor = self.critic(micro.packed)
            return values
        head: torch.Tensor = self.policy(micro.packed)[2]
        return head


def update(
    models: Models,
    mini_batches: Sequence[Sequence[PackedExperience]],
    settings: PPO,
    *,
    kl_coef: float,
    reuse_rollout_log_probs: bool,
    ranks: int,
    reduce: Reduce,
) -> dict[str, float]:
    """Old log-probs and values, rewards, advantages, then epochs over mini-batches.

    Args:
        models: what is trained.
        mini_batches: this rank's micro-batches of each mini-batch; as many on every rank.
        settings: PPO's numbers.
        kl_coef: weight of the KL penalty now.
        reuse_rollout_log_probs: the only optimiser step sees the policy that generated the samples, untruncated, so
            the ratio is 1 by construction and a pass for old log-probs would compute what is known.
        ranks: data-parallel ranks.
        reduce: sum over ranks.

    Returns:
        metrics of the whole batch, the same on every rank.
    """
    everything = [micro for mini in mini_batches for micro in mini]
    recorder = _Recorder(reduce)
    _look_back(models, everything, reuse_rollout_log_probs)
    _estimate_advantages(everything, settings, kl_coef, reduce)
    _record_batch(recorder, everything, kl_coef)
    step = 0
    for epoch in range(settings.epochs):
        for mini in mini_batches:
            tokens = float(reduce(torch.tensor([sum(float(m.lengths.sum()) for m in mini)], dtype=torch.float64)))
            for micro in mini:
                _accumulate(models, micro, settings, ranks / tokens, reuse_rollout_log_probs, recorder)
            if models.also is not None:
                loss, count = models.also(step)
                recorder.token_means(count, {"actor/ptx_loss": torch.tensor(loss)})
            step += 1
            recorder.step("actor", models.policy.step())
            if models.critic is not None:
                recorder.step("critic", models.critic.step())
        recorder.metrics["actor/epochs"] = epoch + 1.0
        if settings.max_policy_kl is not None and recorder.running_mean("actor/ppo_kl") > settings.max_policy_kl:
            break
    return recorder.result()


@torch.no_grad()
def _look_back(models: Models, micros: Sequence[PackedExperience], reuse_rollout_log_probs: bool) -> None:
    """Log-probs and values under the models as they are before the update."""
    for micro in micros:
        if models.critic is None:
            log_probs, _, micro.values = models.policy(micro.packed)
            micro.log_probs = micro.rollout_log_probs if reuse_rollout_log_probs else log_probs
        else:
            micro.values = models.values(micro)
            micro.log_probs = micro.rollout_log_probs if reuse_rollout_log_probs else models.policy(micro.packed)[0]


def _estimate_advantages(micros: Sequence[PackedExperience], settings: PPO, kl_coef: float, reduce: Reduce) -> None:
    for micro in micros:
        kl = k1(micro.log_probs, micro.ref_log_probs)
        rewards = shaped_rewards(micro.scores, kl, micro.lengths, coefficient=kl_coef)
        micro.advantages, micro.returns = gae(
            rewards, micro.values, micro.lengths, gamma=settings.gamma, lam=settings.gae_lambda
        )
    if settings.whiten_advantages:
        total = reduce(torch.stack([moments(micro.advantages) for micro in micros]).sum(0).cpu())
        for micro in micros:
            micro.advantages = whiten(micro.advantages, total.to(micro.advantages.device))


def _accumulate(
    models: Models, micro: PackedExperience, settings: PPO, scale: float, ratio_is_one: bool, recorder: _Recorder
) -> None:
    """Gradients of one micro-batch; `scale` turns its sums into its share of the whole mini-batch's mean."""
    log_probs, entropy, values = models.policy(micro.packed, entropy_grad=settings.entropy_coef > 0)
    old = log_probs.detach() if ratio_is_one else micro.log_probs
    pg_loss, sums = policy_loss_sum(log_probs, old, micro.advantages, clip_ratio=settings.clip_ratio)
    loss = pg_loss - settings.entropy_coef * entropy.sum() if settings.entropy_coef > 0 else pg_loss
    if models.critic is not None:
        models.policy.backward(loss * scale)
        values = models.critic(micro.packed)
    vf_loss, vf_clipped = value_loss_sum(values, micro.values, micro.returns, clip_value=settings.clip_value)
    if models.critic is not None:
        models.critic.backward(vf_loss * scale)
    else:
        models.policy.backward((loss + settings.value_coef * vf_loss) * scale)
    difference = (log_probs.detach().exp() - micro.rollout_log_probs.exp()).abs()
    recorder.token_means(
        log_probs.numel(),
        {
            "actor/pg_loss": pg_loss,
            "actor/pg_clipfrac": sums["clipped"],
            "actor/ppo_kl": sums["kl"],
            "actor/entropy": entropy.sum(),
            "critic/vf_loss": vf_loss,
            "critic/vf_clipfrac": vf_clipped,
            "training/rollout_probs_diff_mean": difference.sum() if recorder.steps == 0 else None,
        },
    )


def _record_batch(recorder: _Recorder, micros: Sequence[PackedExperience], kl_coef: float) -> None:
    """What is known about the batch before the first step."""
    for micro in micros:
        kl = k1(micro.log_probs, micro.ref_log_probs)
        kl_per_sample = segment_sums(kl, micro.lengths)
        recorder.token_means(
            micro.values.numel(),
            {
                "actor/ref_kl": k3(micro.log_probs, micro.ref_log_probs).sum(),
                "critic/values/mean": micro.values.sum(),
                "critic/returns/mean": micro.returns.sum(),
            },
        )
        recorder.sequence_means(
            len(micro.lengths),
            {
                "objective/kl": kl_per_sample.sum(),
                "objective/scores": micro.scores.sum(),
                "objective/non_score_reward": -kl_coef * kl_per_sample.sum(),
                "objective/rlhf_reward": (micro.scores - kl_coef * kl_per_sample).sum(),
                "objective/entropy": -micro.log_probs.sum(),
            },
        )
        recorder.variance += explained_variance(micro.values, micro.returns).flatten().cpu()


class _Recorder:
    """Sums and counts of this rank, added over ranks once at the end."""

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = {}
        self.variance = torch.zeros(6, dtype=torch.float64)
        self.steps = 0

    def token_means(self, count: float, sums: dict[str, torch.Tensor | None]) -> None:
        for name, value in sums.items():
            if value is not None:
                self.sums[name] += float(value.detach())
                self.counts[name] += count

    sequence_means = token_means

    def step(self, model: str, facts: dict[str, float]) -> None:
        self.steps += 1
        for name, value in facts.items():
            self.metrics[f"{model}/{name}"] = value

    def running_mean(self, name: str) -> float:
        total, count = self.reduce(torch.tensor([self.sums[name], self.counts[name]], dtype=torch.float64))
        return float(total / count)

    def result(self) -> dict[str, float]:
        names = sorted(self.sums)
        vector = [self.sums[name] for name in names] + [self.counts[name] for name in names]
        total = self.reduce(torch.cat([torch.tensor(vector, dtype=torch.float64), self.variance]))
        sums, counts, variance = total.split([len(names), len(names), 6])
        means = {name: float(a / b) for name, a, b in zip(names, sums, counts, strict=True)}
        return {**means, **self.metrics, "critic/vf_explained_var": _explained(variance.view(2, 3))}


def _explained(moments_of: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns)."""
    (n, error, error2), (_, returns, returns2) = moments_of
    variance = returns2 / n - (returns / n) ** 2
    return float(1.0 - (error2 / n - (error / n) ** 2) / variance) if variance > 0 else 0.0
