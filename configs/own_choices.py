"""Choices of one's own, to copy: `PYTHONPATH=configs rlhf-dist rl configs/own.yaml` (signatures: rlhf_dist/learner/own.py)."""

import torch

from rlhf_dist.algorithms.answers import AnswerBatch, group_means


def median(answers: AnswerBatch) -> torch.Tensor:
    """A baseline, [answers]: the median reward of the prompt's answers, which one odd score does not move."""
    found = torch.empty_like(answers.rewards)
    for group in answers.groups.unique():
        own = answers.groups == group
        found[own] = answers.rewards[own].median()
    return found


def deviation(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor:
    """A scale, [answers]: over the mean absolute deviation of the prompt's answers; 0 where all are alike."""
    spread = group_means(centred.abs(), answers.groups)
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)


def tempered(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """A surrogate, [tokens] losses: -2 A sqrt(ratio), which at ratio 1 has the gradient of all others, -A of log pi."""
    log_ratio = (new - old).clamp(-20, 20)
    return -advantages * 2 * (log_ratio / 2).exp()


def brief(prompt: str, answer: str) -> float:
    """A reward: 1 for up to ten words, falling to 0 at forty."""
    words = len(answer.split())
    return min(1.0, max(0.0, (40 - words) / 30))
