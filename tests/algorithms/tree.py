"""A tree of answers small enough to be summed over: three tokens, of which the last ends an answer, and at most three of them.

A policy is its logits, float64 [prefixes, tokens]. Flat [tokens] are those of all 15 answers, one answer after the other.
"""

import itertools

import numpy as np
import torch

from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.config import RL, Algorithm, Correction
from rlhf_dist.learner.estimation import answer_advantages
from rlhf_dist.learner.objective import RLObjective

TOKENS, END, LONGEST = 3, 2, 3


def _answers(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if len(prefix) == LONGEST or prefix[-1:] == (END,):
        return [prefix]
    return [answer for token in range(TOKENS) for answer in _answers((*prefix, token))]


ANSWERS = _answers()
PREFIXES = sorted({answer[:t] for answer in ANSWERS for t in range(len(answer))})
LENGTHS = torch.tensor([len(answer) for answer in ANSWERS])
STARTS = LENGTHS.cumsum(0) - LENGTHS
STATES = torch.tensor([PREFIXES.index(answer[:t]) for answer in ANSWERS for t in range(len(answer))])
"""[tokens], the prefix that each was sampled after."""
CHOICES = torch.tensor([token for answer in ANSWERS for token in answer])


def _figures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (0.7 * torch.randn(7, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return policy, reference, torch.from_numpy(np.random.default_rng(0).normal(size=15))


POLICY, REFERENCE, REWARDS = _figures()


def token_log_probs(logits: torch.Tensor) -> torch.Tensor:
    """[tokens]."""
    return torch.log_softmax(logits, -1)[STATES, CHOICES]


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """[15], of whole answers."""
    return segment_sums(token_log_probs(logits), LENGTHS)


def tokens_of(chosen: torch.Tensor) -> torch.Tensor:
    """Places in flat [tokens] of the tokens of answers, some of them more than once."""
    lengths = LENGTHS[chosen]
    within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(STARTS[chosen], lengths) + within


def groups_of(size: int) -> torch.Tensor:
    """Every group of so many answers, [groups, size]."""
    return torch.tensor(list(itertools.product(range(len(ANSWERS)), repeat=size)))


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Flat, of a number."""
    return torch.autograd.grad(value, logits)[0].flatten()


def gradient_of_mean(f: torch.Tensor, logits: torch.Tensor = POLICY) -> torch.Tensor:
    """The gradient of E f under the policy, f [15] held fixed: what all policy gradients are compared with."""
    at = logits.clone().requires_grad_()
    return gradient((log_probs(at).exp() * f).sum(), at)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of distributions over answers, given as log-probs."""
    return (p.exp() * (p - q)).sum()


def optimum(reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> tuple[torch.Tensor, float]:
    """Log-probs of the answers where E r - beta KL to the reference is largest, and that value."""
    unscaled = log_probs(reference) + rewards / beta
    total = torch.logsumexp(unscaled, 0)
    return unscaled - total, float(beta * total)


def logits_of(whole: torch.Tensor) -> torch.Tensor:
    """Logits under which answers have these log-probs."""
    return torch.stack([torch.stack([_mass(whole, (*prefix, t)) for t in range(TOKENS)]) for prefix in PREFIXES])


def _mass(whole: torch.Tensor, prefix: tuple[int, ...]) -> torch.Tensor:
    return torch.logsumexp(
        torch.stack([p for p, a in zip(whole, ANSWERS, strict=True) if a[: len(prefix)] == prefix]), 0
    )


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    """Total variation of two distributions over answers, given as log-probs."""
    return float(0.5 * (p.exp() - q.exp()).abs().sum())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def objective(correction: Correction | None = None, **settings: object) -> RLObjective:
    """Settings that differ from REINFORCE's without any baseline."""
    plain = {"baseline": "none", "surrogate": "plain", "aggregate": "fixed_length", "whiten_advantages": False}
    return RLObjective(Algorithm(**{**plain, **settings}), correction or Correction(), RL(), LONGEST)


def answers_of(groups: torch.Tensor, rewards: torch.Tensor, *, given: float = 0.0, running: float = 0.0) -> AnswerBatch:
    """All groups beside each other, as the groups of one iteration."""
    flat = groups.flatten()
    numbers = torch.arange(len(groups)).repeat_interleave(groups.shape[1])
    return AnswerBatch(rewards[flat], LENGTHS[flat], numbers, torch.full_like(rewards[flat], given), running)


def advantages_of(groups: torch.Tensor, told: RLObjective, answers: AnswerBatch) -> torch.Tensor:
    """[groups, size]."""
    return answer_advantages(answers, told)[1].view(groups.shape)
