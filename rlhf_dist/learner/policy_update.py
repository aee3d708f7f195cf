"""The update on one rank, in the order of the algorithm. Collectives are sums that the caller provides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.kl import k1, k3, kl_losses
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.algorithms.value_losses import explained_variance_sums, value_loss_sum
from rlhf_dist.learner import mismatch
from rlhf_dist.learner.estimation import Asked, Minis, estimate, look_back
from rlhf_dist.learner.experience import PackedExperience, finite_samples
from rlhf_dist.learner.finite import NotFinite, found_in
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.recorder import RATIO_MAX, Ranks, Recorder
from rlhf_dist.learner.trained_model import TrainedModel, finite_or_nan
from rlhf_dist.records import RowKey

PPO_KL = "actor/ppo_kl"
"""KL of the old to the new policy, per token, over the whole update; `max_policy_kl` bounds each epoch's own."""
ROLES = {"actor": "policy", "critic": "critic"}
"""What metrics call a model, and what we do."""
Also = Callable[[int], tuple[float, float]]
"""Adds gradients of another loss to the policy's before the optimiser step of that number; its sum, and its tokens."""


@dataclass
class Models:
    """The policy and, unless it has a value head or nobody needs values, the critic."""

    policy: TrainedModel
    critic: TrainedModel | None
    also: Also | None = None
    """Another loss of the policy's, for PPO-ptx."""
    frozen: Mapping[str, Asked] = field(default_factory=dict)
    """What else is asked and not trained: `reference`, `teacher`."""
    stop_on_bad: bool = True
    """End the update at the first mini-batch whose numbers are not finite; else leave such ones out."""


class Updated(NamedTuple):
    """What an update says of itself."""

    facts: dict[str, float]
    """Metrics of the whole batch, the same on every rank, all finite; without those that nothing finite was found for."""
    found: list[NotFinite]
    """Why steps were left out, as this rank knows it."""


def update(models: Models, mini_batches: Minis, objective: RLObjective, now: Now, *, ranks: Ranks) -> Updated:
    """Old log-probs and values, rewards, advantages, then epochs over mini-batches.

    Args:
        models: what is trained.
        mini_batches: this rank's micro-batches of each mini-batch; as many on every rank.
        objective: what is estimated and minimised, and in which steps.
        now: what belongs to this update.
        ranks: data-parallel ranks.
    """
    everything, rl = [micro for mini in mini_batches for micro in mini], objective.rl
    recorder = Recorder(ranks)
    recompute = objective.correction.proximal == "recompute" and not now.ratio_is_one
    look_back(
        models.policy,
        models.critic,
        everything,
        recompute=recompute,
        own_reference=objective.own_reference,
        frozen=models.frozen,
    )
    estimate(mini_batches, objective, now, ranks)
    _record_batch(recorder, everything, now.kl_coef)
    if recompute:  # else the first steps know the learner's own
        for micro in everything:
            mismatch.record(recorder, micro.log_probs, micro.rollout_log_probs, micro.lengths, objective.correction)
    learning = _Learning(models, objective, now, recorder)
    for epoch in range(rl.epochs):
        began = recorder.sum_of(PPO_KL)
        learning.compares = not recompute and epoch == 0
        for mini in mini_batches:
            learning.step(mini)
            if models.stop_on_bad and learning.left_out:
                return learning.result()
        recorder.metrics["actor/epochs"] = epoch + 1.0
        if rl.max_policy_kl is not None and not now.critic_only:
            # Of this epoch alone: earlier ones, the first step's 0 above all, would hide how far the policy is now.
            total, count = ranks.sum(recorder.sum_of(PPO_KL) - began)
            if total / count > rl.max_policy_kl:
                learning.skip_all(rl.epochs * len(mini_batches) - learning.number)
                break
    return learning.result()


class _Learning:
    """The optimiser steps of an update, each taken by policy and critic alike, or by neither."""

    def __init__(self, models: Models, objective: RLObjective, now: Now, recorder: Recorder) -> None:
        self.models, self.objective, self.now, self.recorder = models, objective, now, recorder
        self.algorithm, self.surrogate = objective.algorithm, objective.surrogate
        self.compares = False
        """Whether a step's log-probs are those before any step, to compare with the engine's."""
        self.number = self.left_out = 0
        self.found: list[NotFinite] = []
        self.trained = {} if now.critic_only else {"actor": models.policy}
        self.trained |= {"critic": models.critic} if models.critic is not None else {}
        recorder.metrics |= {f"{name}/skipped_steps": 0.0 for name in self.trained}

    def result(self) -> Updated:
        """What there is to say."""
        return Updated(mismatch.completed(self.recorder.result()), self.found)

    def skip_all(self, steps: int) -> None:
        """Leave steps out that nothing speaks against but that the update has come far enough."""
        for model in self.trained.values():
            model.skip(steps)
        if self.now.critic_only:
            self.models.policy.skip(steps)

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
                if not self.now.critic_only:
                    self._accumulate(micro, tokens)
                elif self.models.critic is not None:
                    self._learn_values(micro, self.models.critic(micro.packed), tokens)
            if self.models.also is not None and not self.now.critic_only:
                loss, count = self.models.also(self.number)
                self._look_at("the loss on demonstrations (PPO-ptx)", loss, self.models.policy, [])
                self.recorder.means(count, {"actor/ptx_loss": torch.tensor(loss)})
            self._take(mini)
        if self.now.critic_only:
            self.models.policy.skip(1)
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
            odd = left & ~finite_samples(values, micro.lengths)
            if odd.any():
                keys = [micro.keys[index] for index in odd.nonzero().flatten().tolist()]
                self.found.append(found_in(self.models.policy.steps + 1, f"{name} not finite", keys))
                left &= ~odd
        return int((~left).sum())

    def _accumulate(self, micro: PackedExperience, tokens: float) -> None:
        """Gradients of one micro-batch of a mini-batch of so many tokens."""
        models, algorithm = self.models, self.algorithm
        bonus = self.now.entropy_coef > 0 and algorithm.entropy_in == "loss"
        log_probs, entropy, head = models.policy(micro.packed, entropy_grad=bonus)
        old = log_probs.detach() if self.now.ratio_is_one else micro.log_probs
        if self.compares:
            mismatch.record(
                self.recorder,
                log_probs.detach(),
                micro.rollout_log_probs,
                micro.lengths,
                self.objective.correction,
            )
        weights = micro.of_tokens(micro.answer_weights)
        terms = self._terms(micro, log_probs, old, entropy if bonus else None)
        loss = (terms.double() * weights).sum().float()
        self.recorder.means(log_probs.numel(), {"actor/loss": loss * tokens, "actor/entropy": entropy.sum()})
        scale = float(self.recorder.ranks.number)
        if micro.returns is not None and models.critic is None:
            models.policy.backward(loss * scale + algorithm.value_coef * self._value_loss(micro, head, tokens))
        else:
            models.policy.backward(loss * scale)
        if models.critic is not None:
            # Else the critic would learn from what the policy, whose step is left out, does not.
            self._learn_values(micro, models.critic(micro.packed), tokens, also=finite_or_nan(loss))
        self._look_at("the policy's loss", float(loss.detach()), models.policy, _odd_keys(micro, log_probs))

    def _terms(
        self, micro: PackedExperience, new: torch.Tensor, old: torch.Tensor, entropy: torch.Tensor | None
    ) -> torch.Tensor:
        """The policy's loss on each token, [tokens], before it is weighed by its answer."""
        algorithm, now, record = self.algorithm, self.now, self.recorder.means
        squared = algorithm.surrogate == "squared"
        anchor = micro.ref_log_probs if squared and algorithm.anchor == "reference" else old
        losses = self.surrogate(new, anchor, micro.advantages, micro.lengths)
        log_ratio = (new - old).detach()
        near = log_ratio.clamp(-MOST_NATS, MOST_NATS)
        record(
            len(new),
            {
                "actor/pg_loss": losses.loss.sum(),
                "actor/pg_clipfrac": losses.clipped.sum().float(),
                "actor/log_ratio_cut": (near != log_ratio).sum().float(),
                PPO_KL: (torch.expm1(near) - near).sum(),
            },
        )
        self.recorder.largest(RATIO_MAX, near.exp())
        terms = losses.loss
        if now.kl_coef and algorithm.kl_in == "loss":
            exact = algorithm.kl_gradient == "exact"
            own = kl_losses(new, old, micro.ref_log_probs, micro.lengths, estimator=algorithm.kl_estimator, exact=exact)
            record(len(new), {"actor/kl_loss": own.sum()})
            terms = terms + now.kl_coef * own
        if self.objective.correction.acts:
            terms = mismatch.corrected(terms, old, micro.rollout_log_probs, micro.lengths, self.objective.correction)
        if entropy is not None:
            terms = terms - now.entropy_coef * entropy
        if algorithm.positive_nll_coef:
            right = micro.of_tokens(micro.scores > 0)
            record(int(right.sum()), {"actor/positive_nll": -(new * right).sum()})
            terms = terms - algorithm.positive_nll_coef * right * new
        return torch.where(micro.of_tokens(micro.cut), 0.0, terms) if algorithm.truncated == "mask" else terms

    def _learn_values(
        self,
        micro: PackedExperience,
        values: torch.Tensor,
        tokens: float,
        also: torch.Tensor | float = 1.0,
    ) -> None:
        """The gradient of a critic of its own."""
        assert self.models.critic is not None
        self.models.critic.backward(self._value_loss(micro, values, tokens) * also)

    def _value_loss(self, micro: PackedExperience, values: torch.Tensor, tokens: float) -> torch.Tensor:
        """A micro-batch's share of the mean over a mini-batch's tokens, times the ranks, which DeepSpeed divides by."""
        assert micro.values is not None
        assert micro.returns is not None
        bound = self.algorithm.clip_value
        loss, clipped = value_loss_sum(values, micro.values, micro.returns, clip_value=bound)
        self.recorder.means(values.numel(), {"critic/vf_loss": loss, "critic/vf_clipfrac": clipped})
        models = self.models
        self._look_at("the critic's loss", float(loss.detach()), models.critic or models.policy, micro.keys)
        return loss * (self.recorder.ranks.number / tokens)


def _odd_keys(micro: PackedExperience, log_probs: torch.Tensor) -> list[RowKey]:
    """Samples with log-probs that are not finite, or all of the micro-batch where no sample stands out."""
    finite = finite_samples(log_probs.detach(), micro.lengths).tolist()
    return [key for key, fine in zip(micro.keys, finite, strict=True) if not fine] or list(micro.keys)


def _record_batch(recorder: Recorder, micros: Sequence[PackedExperience], kl_coef: float) -> None:
    """What is known about the batch before the first step, of samples all of whose numbers are finite."""
    for micro in micros:
        fine = torch.stack([finite_samples(values, micro.lengths) for _, values in micro.inputs()]).all(0)
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
