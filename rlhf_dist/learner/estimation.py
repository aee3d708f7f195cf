"""Before the first step: old log-probs and values, rewards of tokens, advantages, and the weight of each answer.

What is a function of whole answers is computed from all ranks' answers at once, on every rank the same, so that neither ranks nor
micro-batches nor the order of rows have a part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from rlhf_dist.algorithms.advantages import gae, lambda_by_length, moments, whiten
from rlhf_dist.algorithms.aggregation import answer_weights
from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.algorithms.baselines import best_of_group
from rlhf_dist.algorithms.kl import k1, shaped_rewards
from rlhf_dist.algorithms.ragged import segment_sums, sums_to_go
from rlhf_dist.config import Algorithm
from rlhf_dist.learner.experience import PackedExperience
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.recorder import Ranks
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import PackedBatch

Asked = Callable[[PackedBatch], torch.Tensor]
"""Says log-probs of a batch's targets, [tokens]."""
Minis = Sequence[Sequence[PackedExperience]]
"""Micro-batches of each mini-batch."""


@torch.no_grad()
def look_back(
    policy: TrainedModel,
    critic: TrainedModel | None,
    micros: Sequence[PackedExperience],
    *,
    recompute: bool,
    own_reference: bool,
    frozen: Mapping[str, Asked],
) -> None:
    """Log-probs and values under the models as they are before the update.

    Args:
        policy: the policy.
        critic: the critic, unless it is a head of the policy's, or there is none.
        micros: what they are asked about.
        recompute: whether ratios start from the policy's own log-probs, and not from the engine's.
        own_reference: the policy with its adapters off is the reference.
        frozen: `reference` and `teacher`, as far as no workers have asked them.
    """
    has_head = policy.module.value_head is not None
    for micro in micros:
        micro.log_probs = micro.rollout_log_probs
        if critic is not None:
            micro.values = critic(micro.packed)
        if has_head or recompute:
            log_probs, _, head = policy(micro.packed)
            micro.values = head if has_head else micro.values
            micro.log_probs = log_probs if recompute else micro.rollout_log_probs
        if own_reference:
            with policy.without_adapters():
                micro.ref_log_probs = policy(micro.packed)[0]
        if "reference" in frozen:
            micro.ref_log_probs = frozen["reference"](micro.packed)
        if "teacher" in frozen:
            micro.teacher_log_probs = frozen["teacher"](micro.packed)


def estimate(minis: Minis, objective: RLObjective, now: Now, ranks: Ranks) -> None:
    """Advantages, returns and answer weights of all micro-batches."""
    micros = [micro for mini in minis for micro in mini]
    rewards = [token_rewards(micro, objective.algorithm, now) for micro in micros]
    if objective.algorithm.has_critic:
        _by_critic(micros, rewards, objective.algorithm)
    else:
        _by_answers(micros, rewards, objective, now, ranks)
    if objective.algorithm.whiten_advantages:
        _whiten(micros, ranks)
    _weigh(minis, objective, ranks)


def token_rewards(micro: PackedExperience, algorithm: Algorithm, now: Now) -> torch.Tensor:
    """[tokens]: r, less the KL to the reference, plus entropy and what a teacher says, where these are in the reward."""
    found = micro.rewards
    if algorithm.kl_in == "reward" and now.kl_coef:
        found = shaped_rewards(found, k1(micro.log_probs, micro.ref_log_probs), coefficient=now.kl_coef)
    if algorithm.entropy_in == "reward" and now.entropy_coef:
        found = shaped_rewards(found, micro.log_probs, coefficient=now.entropy_coef)
    if algorithm.teacher_coef:
        found = shaped_rewards(found, k1(micro.log_probs, micro.teacher_log_probs), coefficient=algorithm.teacher_coef)
    return found


def _by_critic(micros: Sequence[PackedExperience], rewards: Sequence[torch.Tensor], algorithm: Algorithm) -> None:
    """Generalised advantages; the critic learns with its own lambda, the policy with another where settings say so."""
    for micro, own in zip(micros, rewards, strict=True):
        assert micro.values is not None
        gamma, policy_lambda = algorithm.gamma, algorithm.gae_lambda_policy
        advantages, micro.returns = gae(own, micro.values, micro.lengths, gamma=gamma, lam=algorithm.gae_lambda)
        if algorithm.gae_length_alpha is not None:
            lam = lambda_by_length(micro.lengths, algorithm.gae_length_alpha)
            advantages, _ = gae(own, micro.values, micro.lengths, gamma=gamma, lam=lam)
        elif policy_lambda is not None:
            advantages, _ = gae(own, micro.values, micro.lengths, gamma=gamma, lam=policy_lambda)
        micro.advantages = advantages


def _by_answers(
    micros: Sequence[PackedExperience], rewards: Sequence[torch.Tensor], objective: RLObjective, now: Now, ranks: Ranks
) -> None:
    """Rewards of whole answers less a baseline, on every token; or each token's rewards to come less it."""
    totals = [segment_sums(own.double(), micro.lengths) for micro, own in zip(micros, rewards, strict=True)]
    whole = _gathered(micros, {"rewards": totals, "given": [micro.given for micro in micros]}, ranks)
    baselines, advantages = answer_advantages(
        AnswerBatch(
            whole["rewards"], whole["lengths"].long(), whole["groups"].long(), whole["given"], now.running_mean
        ),
        objective,
    )
    for micro, own in zip(micros, rewards, strict=True):
        places = micro.places.cpu()
        if objective.algorithm.credit == "to_go":
            to_go = sums_to_go(own, micro.lengths, gamma=objective.algorithm.gamma)
            micro.advantages = to_go - micro.of_tokens(baselines[places].to(own))
        else:
            micro.advantages = micro.of_tokens(advantages[places].to(own))


def answer_advantages(answers: AnswerBatch, objective: RLObjective) -> tuple[torch.Tensor, torch.Tensor]:
    """Baseline and advantage of each answer, float64 [answers]; NaN for those whose reward is, which count for no other."""
    fine = answers.rewards.isfinite()
    groups = torch.unique(answers.groups[fine], return_inverse=True)[1]
    sound = AnswerBatch(answers.rewards[fine], answers.lengths[fine], groups, answers.given[fine], answers.running_mean)
    baselines = torch.full_like(answers.rewards, torch.nan)
    advantages = baselines.clone()
    baselines[fine] = objective.baseline(sound).double()
    if objective.algorithm.select == "best":
        advantages[fine] = best_of_group(sound)
    else:
        advantages[fine] = objective.scale(sound.rewards - baselines[fine], sound).double()
    return baselines, advantages


def _gathered(
    micros: Sequence[PackedExperience], columns: dict[str, list[torch.Tensor]], ranks: Ranks
) -> dict[str, torch.Tensor]:
    """Columns [answers] of all ranks' answers, in the order of the batch, with their lengths and groups; float64."""
    columns = {
        **columns,
        "lengths": [micro.lengths for micro in micros],
        "groups": [micro.groups for micro in micros],
    }
    places = torch.cat([micro.places for micro in micros]).cpu() if micros else torch.zeros(0, dtype=torch.int64)
    last = float(places.max()) + 1 if len(places) else 0.0
    size = int(ranks.largest(torch.tensor([last], dtype=torch.float64)).item())
    table = torch.zeros(len(columns), size, dtype=torch.float64)
    for row, parts in zip(table, columns.values(), strict=True):
        if parts:
            row[places] = torch.cat([part.double().cpu() for part in parts])
    return dict(zip(columns, ranks.sum(table.flatten()).view(table.shape), strict=True))


def _whiten(micros: Sequence[PackedExperience], ranks: Ranks) -> None:
    # What is not finite is left out with its mini-batch, and must not be in the others through the mean.
    finite = [micro.advantages[micro.advantages.isfinite()] for micro in micros]
    everything = torch.cat(finite).double().cpu() if finite else torch.zeros(0, dtype=torch.float64)
    total = ranks.sum(moments(everything))
    ends = [everything.max(), -everything.min()] if len(everything) else [torch.tensor(-torch.inf)] * 2
    largest, smallest = ranks.largest(torch.stack(ends).double()).tolist()
    for micro in micros:
        micro.advantages = whiten(micro.advantages, total.to(micro.advantages.device), spread=largest + smallest)


def _weigh(minis: Minis, objective: RLObjective, ranks: Ranks) -> None:
    """Weights of answers in their mini-batches, which are parts of the whole batch."""
    micros = [micro for mini in minis for micro in mini]
    numbers = [
        torch.full_like(micro.lengths, number, dtype=torch.float64)
        for number, mini in enumerate(minis)
        for micro in mini
    ]
    whole = _gathered(micros, {"minis": numbers}, ranks)
    weights = torch.zeros_like(whole["lengths"])
    for number in range(len(minis)):
        own = whole["minis"] == number
        weights[own] = answer_weights(
            objective.algorithm.aggregate,
            whole["lengths"][own].long(),
            whole["groups"][own].long(),
            longest=objective.longest,
        )
    for micro in micros:
        micro.answer_weights = weights[micro.places.cpu()].to(micro.lengths.device)
