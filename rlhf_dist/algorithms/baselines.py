"""What an answer's reward is compared with. Each is a function of `AnswerBatch`, [answers] to [answers].

An answer's advantage is its reward less the baseline. A baseline that does not depend on the answer itself leaves the expected
policy gradient as it is (Williams 1992); of those here `group_mean`, `length_weighted` and `batch_mean` do, by an n-th part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rlhf_dist.algorithms.answers import AnswerBatch, group_means, group_sums

Baseline = Callable[[AnswerBatch], torch.Tensor]


def none(answers: AnswerBatch) -> torch.Tensor:
    """0."""
    return torch.zeros_like(answers.rewards)


def leave_one_out(answers: AnswerBatch) -> torch.Tensor:
    """Mean R of the prompt's other answers (Kool et al. 2019; arXiv:2402.14740, section 3.2); groups have at least two."""
    totals = group_sums(answers.rewards, answers.groups)[answers.groups]
    others = answers.counts[answers.groups] - 1
    return (totals - answers.rewards) / others


def group_mean(answers: AnswerBatch) -> torch.Tensor:
    """Mean R of the prompt's answers, the answer's own in it (arXiv:2402.03300)."""
    return group_means(answers.rewards, answers.groups)


def length_weighted(answers: AnswerBatch) -> torch.Tensor:
    """Sum T_j R_j / sum T_j over the prompt's answers, T their tokens (OPO, arXiv:2505.23585, equation 9)."""
    weighted = group_sums(answers.lengths * answers.rewards, answers.groups)
    return (weighted / group_sums(answers.lengths, answers.groups))[answers.groups]


def batch_mean(answers: AnswerBatch) -> torch.Tensor:
    """Mean R of all answers (REINFORCE++, arXiv:2501.03262, without its return to go)."""
    return torch.full_like(answers.rewards, float(answers.rewards.mean()))


def running_mean(answers: AnswerBatch) -> torch.Tensor:
    """A decayed mean R of the iterations before (arXiv:2506.24119); 0 in the first."""
    return torch.full_like(answers.rewards, answers.running_mean)


def greedy(answers: AnswerBatch) -> torch.Tensor:
    """Score of the greedy answer to the same prompt (ReMax, arXiv:2310.10505, equation 4)."""
    return answers.given


def optimal_value(answers: AnswerBatch) -> torch.Tensor:
    """V* = tau log mean exp(R / tau) over answers of the reference (A*-PO, arXiv:2505.20686, equation 4)."""
    return answers.given


BASELINES: Mapping[str, Baseline] = {
    each.__name__: each
    for each in (
        leave_one_out,
        group_mean,
        length_weighted,
        batch_mean,
        running_mean,
        greedy,
        optimal_value,
        none,
    )
}


def best_of_group(answers: AnswerBatch) -> torch.Tensor:
    """1 for the best answer of each prompt, the first of equals, and 0 for the others, [answers] (RAFT, arXiv:2304.06767)."""
    chosen = torch.zeros_like(answers.rewards)
    for group in range(len(answers.counts)):
        own = (answers.groups == group).nonzero().flatten()
        chosen[own[answers.rewards[own].argmax()]] = 1.0
    return chosen


def soft_maximum(rewards: torch.Tensor, *, tau: float) -> float:
    """Tau log mean exp(R / tau), [answers] of one prompt under the reference: the optimal value of E R - tau KL there."""
    count = torch.tensor(float(len(rewards)), dtype=torch.float64)
    return float(tau * (torch.logsumexp(rewards.double() / tau, 0) - count.log()))


class RunningMean:
    """A decayed mean, corrected for its start as Adam's moments are (Kingma and Ba 2015, arXiv:1412.6980, section 3)."""

    def __init__(self, decay: float, *, total: float = 0.0, weight: float = 0.0) -> None:
        """Go on from `total` over `weight`, or begin with nothing."""
        self.decay, self.total, self.weight = decay, total, weight

    @property
    def value(self) -> float:
        """The mean; 0 before the first."""
        return self.total / self.weight if self.weight else 0.0

    def update(self, mean: float) -> None:
        """Take the mean of one more iteration."""
        self.total = self.decay * self.total + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)
