"""The PPO update on one rank, in the order of the algorithm. Collectives are sums that the caller provides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from rlhf_dist.algorithms.advantages import moments, whiten
from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.estimators import Estimator, Trajectories
from rlhf_dist.algorithms.kl import k1, k3, shaped_rewards
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.algorithms.surrogates import Surrogate
from rlhf_dist.algorithms.value_losses import explained_variance_sums, value_loss_sum
from rlhf_dist.config import PPO
from rlhf_dist.learner.finite import NotFinite, found_in
from rlhf_dist.learner.recorder import Ranks, Recorder
from rlhf_dist.learner.trained_model import TrainedModel, finite_or_nan
from rlhf_dist.models import PackedBatch
from rlhf_dist.records import RowKey

PPO_KL = "actor/ppo_kl"
"""KL of the old to the new policy, per token, over the whole update; `max_policy_kl` bounds each epoch's own."""
PROBS_DIFF = "training/rollout_probs_diff_mean"
"""Distance of the engine's and the learner's probabilities of a token, before the first step, over the whole batch."""
ROLES = {"actor": "policy", "critic": "critic"}
"""What metrics call a model, and what we do."""
Also = Callable[[int], tuple[float, float]]
"""Adds gradients of another loss to the policy's before the optimiser step of that number; its sum, and its tokens."""


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
    keys: Sequence[RowKey]
    """Of each sequence."""
    log_probs: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def inputs(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that losses are computed from, [tokens] each, in the order in which it comes to be, so that causes come first."""
        yield "scores are", self.rewards
        yield "the engine's log-probs are", self.rollout_log_probs
        yield "the reference's log-probs are", self.ref_log_probs
        yield "the policy's log-probs before the update are", self.log_probs
        if self.values is not None:
            yield "the critic's values are", self.values
        yield "advantages are", self.advantages
        if self.returns is not None:
            yield "returns are", self.returns


@dataclass
class Models:
    """The policy and, unless it has a value head or nobody needs values, the critic."""

    policy: TrainedModel
    critic: TrainedModel | None
    also: Also | None = None
    """Another loss of the policy's, for PPO-ptx."""
    stop_on_bad: bool = True
    """End the update at the first mini-batch whose numbers are not finite; else leave such ones out."""


class Updated(NamedTuple):
    """What an update says of itself."""

    facts: dict[str, float]
    """Metrics of the whole batch, the same on every rank, all finite; without those that nothing finite was found for."""
    found: list[NotFinite]
    """Why steps were left out, as this rank knows it."""


def update(
    models: Models,
    mini_batches: Sequence[Sequence[PackedExperience]],
    method: Method,
    settings: PPO,
    *,
    kl_coef: float,
    reuse_rollout_log_probs: bool,
    ranks: Ranks,
) -> Updated:
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
    """
    everything = [micro for mini in mini_batches for micro in mini]
    recorder = Recorder(ranks)
    _look_back(models, everything, reuse_rollout_log_probs)
    _estimate_advantages(everything, method.estimator, settings, kl_coef, ranks)
    _record_batch(recorder, everything, kl_coef)
    if not reuse_rollout_log_probs:  # else the only step knows the learner's own
        for micro in everything:
            told = _probs_difference(micro.log_probs, micro.rollout_log_probs)
            recorder.means(micro.log_probs.numel(), {PROBS_DIFF: told})
    learning = _Learning(models, method.surrogate, settings, recorder, reuse=reuse_rollout_log_probs)
    for epoch in range(settings.epochs):
        began = recorder.sum_of(PPO_KL)
        for mini in mini_batches:
            learning.step(mini)
            if models.stop_on_bad and learning.left_out:
                return Updated(recorder.result(), learning.found)
        recorder.metrics["actor/epochs"] = epoch + 1.0
        if settings.max_policy_kl is not None:
            # Of this epoch alone: earlier ones, the first step's 0 above all, would hide how far the policy is now.
            total, count = ranks.sum(recorder.sum_of(PPO_KL) - began)
            if total / count > settings.max_policy_kl:
                models.policy.skip(settings.epochs * len(mini_batches) - learning.number)
                if models.critic is not None:
                    models.critic.skip(settings.epochs * len(mini_batches) - learning.number)
                break
    return Updated(recorder.result(), learning.found)


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
        # What is not finite is left out with its mini-batch, and must not be in the others through the mean.
        finite = [micro.advantages[micro.advantages.isfinite()] for micro in micros]
        total = ranks.sum(torch.stack([moments(each) for each in finite]).sum(0).cpu())
        for micro in micros:
            micro.advantages = whiten(micro.advantages, total.to(micro.advantages.device))


class _Learning:
    """The optimiser steps of an update, each taken by policy and critic alike, or by neither."""

    def __init__(self, models: Models, surrogate: Surrogate, settings: PPO, recorder: Recorder, *, reuse: bool) -> None:
        self.models, self.surrogate, self.settings, self.recorder = models, surrogate, settings, recorder
        self.reuse = reuse
        self.number = self.left_out = 0
        self.found: list[NotFinite] = []
        self.trained = {"actor": models.policy} | ({"critic": models.critic} if models.critic is not None else {})
        recorder.metrics |= {f"{name}/skipped_steps": 0.0 for name in self.trained}

    def step(self, mini: Sequence[PackedExperience]) -> None:
        """Learn from one mini-batch, unless something of it is not finite on any rank."""
        odd = sum(self._find_inputs(micro) for micro in mini)
        own = torch.tensor([sum(float(m.lengths.sum()) for m in mini), float(odd)], dtype=torch.float64)
        tokens, odd_anywhere = self.recorder.ranks.sum(own).tolist()
        if odd_anywhere:
            for name, model in self.trained.items():
                model.skip(1)
                self._leave_out(name)
            self.left_out += 1
        else:
            for micro in mini:
                self._accumulate(micro, self.recorder.ranks.number / tokens)
            if self.models.also is not None:
                loss, count = self.models.also(self.number)
                self._look_at("the loss on demonstrations (PPO-ptx)", loss, self.models.policy, [])
                self.recorder.means(count, {"actor/ptx_loss": torch.tensor(loss)})
            self._take(mini)
        self.number += 1

    def _take(self, mini: Sequence[PackedExperience]) -> None:
        """Step, the policy last and only where all is well. Each norm is of all ranks together, so all decide alike."""
        well = True
        for name, model in reversed(self.trained.items()):
            if not well:  # as the critic's step was left out: DeepSpeed forgets gradients for the same reason alone
                model.backward(model(mini[0].packed)[0].sum() * math.nan)
            facts = model.step()
            if facts is not None:
                self.recorder.step(name, facts)
                continue
            if well:
                keys = [key for micro in mini for key in micro.keys]
                what = f"the norm of the {ROLES[name]}'s gradient is not finite"
                self.found.append(found_in(model.steps, what, keys, vague=True))
            well = False
            self._leave_out(name)
        self.left_out += not well

    def _leave_out(self, name: str) -> None:
        self.recorder.metrics[f"{name}/skipped_steps"] += 1

    def _look_at(self, what: str, value: float, model: TrainedModel, keys: Sequence[RowKey]) -> None:
        if not math.isfinite(value):
            self.found.append(found_in(model.steps + 1, f"{what} is {value}", keys))

    def _find_inputs(self, micro: PackedExperience) -> int:
        """Samples of which something is not finite before a loss is computed; they are noted."""
        left = torch.ones(len(micro.lengths), dtype=torch.bool, device=micro.lengths.device)
        for name, values in micro.inputs():
            odd = left & ~_finite_samples(values, micro.lengths)
            if odd.any():
                keys = [micro.keys[index] for index in odd.nonzero().flatten().tolist()]
                self.found.append(found_in(self.models.policy.steps + 1, f"{name} not finite", keys))
                left &= ~odd
        return int((~left).sum())

    def _accumulate(self, micro: PackedExperience, scale: float) -> None:
        """Gradients of one micro-batch; `scale` turns its sums into its share of the whole mini-batch's mean."""
        models, settings = self.models, self.settings
        log_probs, entropy, head = models.policy(micro.packed, entropy_grad=settings.entropy_coef > 0)
        old = log_probs.detach() if self.reuse else micro.log_probs  # reused: the ratio is 1 by construction
        pg_loss, sums = self.surrogate(log_probs, old, micro.advantages, micro.lengths)
        loss = pg_loss - settings.entropy_coef * entropy.sum() if settings.entropy_coef > 0 else pg_loss
        log_ratio = (log_probs - old).detach().clamp(-MOST_NATS, MOST_NATS)
        found = {
            "actor/pg_loss": pg_loss,
            **{f"actor/{name}": value for name, value in sums.items()},
            PPO_KL: (torch.expm1(log_ratio) - log_ratio).sum(),
            "actor/entropy": entropy.sum(),
        }
        self.recorder.ratio(log_ratio)
        if self.reuse:
            found[PROBS_DIFF] = _probs_difference(log_probs.detach(), micro.rollout_log_probs)
        if micro.returns is not None and micro.values is not None:
            if models.critic is not None:
                models.policy.backward(loss * scale)
            values = head if models.critic is None else models.critic(micro.packed)
            vf_loss, vf_clipped = value_loss_sum(values, micro.values, micro.returns, clip_value=settings.clip_value)
            found |= {"critic/vf_loss": vf_loss, "critic/vf_clipfrac": vf_clipped}
            if models.critic is not None:
                # Else the critic would learn from what the policy, whose step is left out, does not.
                models.critic.backward(vf_loss * scale * finite_or_nan(loss))
            else:
                loss = loss + settings.value_coef * vf_loss
                models.policy.backward(loss * scale)
            self._look_at("the critic's loss", float(vf_loss.detach()), models.critic or models.policy, micro.keys)
        else:
            models.policy.backward(loss * scale)
        self._look_at("the policy's loss", float(loss.detach()), models.policy, _odd_keys(micro, log_probs))
        self.recorder.means(log_probs.numel(), found)


def _finite_samples(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Whether all of a sample's tokens have finite values, bool [samples]."""
    return segment_sums((~values.isfinite()).float(), lengths) == 0


def _odd_keys(micro: PackedExperience, log_probs: torch.Tensor) -> list[RowKey]:
    """Samples with log-probs that are not finite, or all of the micro-batch where no sample stands out."""
    finite = _finite_samples(log_probs.detach(), micro.lengths).tolist()
    return [key for key, fine in zip(micro.keys, finite, strict=True) if not fine] or list(micro.keys)


def _probs_difference(log_probs: torch.Tensor, rollout_log_probs: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the distance of two probabilities of each."""
    return (log_probs.exp() - rollout_log_probs.exp()).abs().sum()


def _record_batch(recorder: Recorder, micros: Sequence[PackedExperience], kl_coef: float) -> None:
    """What is known about the batch before the first step, of samples all of whose numbers are finite."""
    for micro in micros:
        fine = torch.stack([_finite_samples(values, micro.lengths) for _, values in micro.inputs()]).all(0)
        tokens = torch.repeat_interleave(fine, micro.lengths)
        log_probs, ref_log_probs = micro.log_probs[tokens], micro.ref_log_probs[tokens]
        kl_per_sample = segment_sums(k1(log_probs, ref_log_probs), micro.lengths[fine])
        scores = segment_sums(micro.rewards[tokens], micro.lengths[fine])
        recorder.means(log_probs.numel(), {"actor/ref_kl": k3(log_probs, ref_log_probs).sum()})
        recorder.means(
            len(scores),
            {
                "objective/kl": kl_per_sample.sum(),
                "objective/scores": scores.sum(),
                "objective/non_score_reward": -kl_coef * kl_per_sample.sum(),
                "objective/rlhf_reward": (scores - kl_coef * kl_per_sample).sum(),
                "objective/entropy": -log_probs.sum(),
            },
        )
        if micro.values is not None and micro.returns is not None:
            values, returns = micro.values[tokens], micro.returns[tokens]
            told = {"critic/values/mean": values.sum(), "critic/returns/mean": returns.sum()}
            recorder.means(values.numel(), told)
            recorder.variance += explained_variance_sums(values, returns).flatten().cpu()
