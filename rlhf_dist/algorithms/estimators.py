"""What is estimated: from the rewards of sampled tokens to their advantages, and to what a critic learns, if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch

from rlhf_dist.algorithms.advantages import gae
from rlhf_dist.algorithms.ragged import segment_sums


class Trajectories(NamedTuple):
    """Finished sequences, flat; all samples of a prompt are here."""

    rewards: torch.Tensor
    """[tokens], received on sampling each token, the KL penalty taken off."""
    lengths: torch.Tensor
    """[sequences], sampled tokens of each, at least 1."""
    groups: torch.Tensor
    """[sequences], equal for the samples of one prompt."""
    values: torch.Tensor | None
    """[tokens], the critic's value of the state before each token."""


class Estimate(NamedTuple):
    """What an estimator makes of them."""

    advantages: torch.Tensor
    """[tokens]."""
    returns: torch.Tensor | None
    """[tokens], the critic's targets; None without a critic."""


class Estimator(Protocol):
    """Advantages of one rank's part of a batch, in which the samples of a prompt are all or none."""

    needs_values: ClassVar[bool]
    """Whether `Trajectories.values` must be there."""

    def __call__(self, batch: Trajectories) -> Estimate:
        """Estimate; sequences of one group may stand anywhere in the batch."""


@dataclass(frozen=True)
class GeneralisedAdvantages:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438); see `algorithms.advantages.gae`."""

    gamma: float
    lam: float
    needs_values: ClassVar[bool] = True

    def __call__(self, batch: Trajectories) -> Estimate:
        """Every token's own advantage."""
        assert batch.values is not None
        return Estimate(*gae(batch.rewards, batch.values, batch.lengths, gamma=self.gamma, lam=self.lam))


@dataclass(frozen=True)
class LeaveOneOutAdvantages:
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, section 3.2).

    A_i = R_i - mean of R_j over the other samples of the prompt = n / (n - 1) (R_i - mean R), the same for every token, where
    R is the sum of a sequence's rewards.
    """

    needs_values: ClassVar[bool] = False

    def __call__(self, batch: Trajectories) -> Estimate:
        """One advantage per sequence, on all its tokens; groups have at least two."""
        totals = segment_sums(batch.rewards, batch.lengths)
        _, member, counts = torch.unique(batch.groups, return_inverse=True, return_counts=True)
        n = counts[member].to(totals.dtype)
        mean = totals.new_zeros(len(counts)).index_add_(0, member, totals)[member] / n
        return Estimate(torch.repeat_interleave(n / (n - 1) * (totals - mean), batch.lengths), None)
