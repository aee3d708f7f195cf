"""What `dpo` stages minimise on packed comparisons, and what their measurements mean in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlhf_dist.algorithms.feedback_losses import dpo_losses, ipo_losses, log_odds, orpo_losses, simpo_losses
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.stages.reward_loss import accuracy


@dataclass(frozen=True)
class DPOLoss:
    """DPO's or IPO's loss on packed pairs; the column `reference` has each answer's mean log-prob under the reference."""

    beta: float
    kind: str
    label_smoothing: float

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss, and sums of hits, implicit reward margins and the chosen answer's implicit reward."""
        per_token = mean_log_probs(model, batch) - batch.targets["reference"]
        a, b, labels = pairs(per_token if self.kind == "ipo" else per_token * batch.lengths, batch)
        if self.kind == "ipo":
            losses = ipo_losses(a, b, labels, beta=self.beta)
        else:
            losses = dpo_losses(a, b, labels, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses.sum(), pair_facts(self.beta * a, self.beta * b, labels)

    def told(self, found: Mapping[str, float]) -> str:
        """What an evaluation found, for people."""
        return (
            f"There the preferred answer gained more probability in {found['accuracy']:.1%}, by a margin of "
            f"{found['margin']:.3f} in implicit reward; the preferred answer's own implicit reward is "
            f"{found['chosen_reward']:.3f} (below 0: it became less likely, too)."
        )


@dataclass(frozen=True)
class SimPOLoss:
    """SimPO's loss on packed pairs; an answer's reward is beta times the mean log-prob of its tokens."""

    beta: float
    gamma: float
    label_smoothing: float

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """As `DPOLoss` returns it, by its own reward."""
        a, b, labels = pairs(mean_log_probs(model, batch), batch)
        losses = simpo_losses(a, b, labels, beta=self.beta, gamma=self.gamma, label_smoothing=self.label_smoothing)
        return losses.sum(), pair_facts(self.beta * a, self.beta * b, labels)

    def told(self, found: Mapping[str, float]) -> str:
        """What an evaluation found, for people."""
        return (
            f"There the preferred answer's tokens are likelier in {found['accuracy']:.1%}, by a margin of "
            f"{found['margin']:.3f} in reward ({self.gamma:g} was asked for); the preferred answer's own reward is "
            f"{found['chosen_reward']:.3f}, {self.beta:g} times its mean log-prob."
        )


@dataclass(frozen=True)
class ORPOLoss:
    """ORPO's loss on packed pairs; an answer's reward is the log odds of its mean log-prob."""

    odds_coef: float

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """As `DPOLoss` returns it, by its own reward, with the preferred answer's negative log-likelihood per token."""
        a, b, labels = pairs(mean_log_probs(model, batch), batch)
        losses = orpo_losses(a, b, labels, odds_coef=self.odds_coef)
        likelihood = (labels * a + (1 - labels) * b).detach().sum()
        return losses.sum(), {**pair_facts(log_odds(a), log_odds(b), labels), "nll": -float(likelihood)}

    def told(self, found: Mapping[str, float]) -> str:
        """What an evaluation found, for people."""
        return (
            f"There the preferred answer's tokens are likelier in {found['accuracy']:.1%}, by a log odds ratio of "
            f"{found['margin']:.3f}; the preferred answer costs {found['nll']:.3f} nats per token."
        )


def mean_log_probs(model: TrainedModel, batch: ExampleBatch) -> torch.Tensor:
    """Of each answer the mean log-prob of its tokens, [answers]."""
    return batch.means(model(batch.packed)[0])


def pairs(values: torch.Tensor, batch: ExampleBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values [answers] of the comparisons' first and second answers, and their labels, each [comparisons]."""
    return values[0::2], values[1::2], batch.targets["label"][0::2]


def pair_facts(rewards_a: torch.Tensor, rewards_b: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Sums over comparisons of hits, margins and the preferred answer's reward.

    Args:
        rewards_a: [comparisons], what the loss takes for the first answers' rewards.
        rewards_b: [comparisons], for the second answers'.
        labels: [comparisons], how likely people prefer the first.
    """
    a, b = rewards_a.detach(), rewards_b.detach()
    facts = {
        "accuracy": accuracy(a - b, labels).sum(),
        "margin": ((a - b) * (2 * labels - 1)).sum(),
        "chosen_reward": torch.where(labels >= 0.5, a, b).sum(),
    }
    return {name: float(value) for name, value in facts.items()}
