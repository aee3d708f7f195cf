"""Finished samples as an update sees them: packed, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.models import PackedBatch
from rlhf_dist.records import RowKey


def _nothing() -> torch.Tensor:
    return torch.zeros(0)


@dataclass
class PackedExperience:
    """One packed micro-batch of finished samples; token tensors are flat [tokens] over the sampled tokens."""

    packed: PackedBatch
    lengths: torch.Tensor
    """[answers], sampled tokens of each."""
    groups: torch.Tensor
    """[answers], equal for the samples of one prompt, numbered over the whole batch."""
    places: torch.Tensor
    """[answers], position of each in the whole batch."""
    rewards: torch.Tensor
    """[tokens], after clipping and penalties; the score of an answer comes with its last token."""
    rollout_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    """Empty where the learner has the reference, until that was asked."""
    teacher_log_probs: torch.Tensor
    """Empty without a teacher, and where the learner has it, until that was asked."""
    cut: torch.Tensor
    """bool [answers], that ended at the longest length."""
    given: torch.Tensor
    """float64 [answers], see `Answers.given`."""
    keys: Sequence[RowKey]
    """Of each answer."""
    log_probs: torch.Tensor = field(default_factory=_nothing)
    """Of the proximal policy, from which ratios start."""
    advantages: torch.Tensor = field(default_factory=_nothing)
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    answer_weights: torch.Tensor = field(default_factory=_nothing)
    """float64 [answers], weight of each token of an answer in its mini-batch's loss."""

    def inputs(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that losses are computed from, [tokens] each, in the order in which it comes to be, so that causes come first."""
        yield "scores are", self.rewards
        yield "the engine's log-probs are", self.rollout_log_probs
        if len(self.ref_log_probs):
            yield "the reference's log-probs are", self.ref_log_probs
        if len(self.teacher_log_probs):
            yield "the teacher's log-probs are", self.teacher_log_probs
        yield "the policy's log-probs before the update are", self.log_probs
        if self.values is not None:
            yield "the critic's values are", self.values
        yield "advantages are", self.advantages
        if self.returns is not None:
            yield "returns are", self.returns

    def of_tokens(self, of_answers: torch.Tensor) -> torch.Tensor:
        """[answers] handed to each of an answer's tokens, [tokens]."""
        return torch.repeat_interleave(of_answers, self.lengths)

    @property
    def scores(self) -> torch.Tensor:
        """[answers], all that was received while each was sampled, before any KL."""
        return segment_sums(self.rewards, self.lengths)


def finite_samples(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Whether all of a sample's tokens have finite values, bool [answers]."""
    return segment_sums((~values.isfinite()).float(), lengths) == 0
