"""The mixed loss of a reward model: scores, comparisons, rankings and read comments in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlhf_dist.algorithms.feedback_losses import centring_losses, comparison_losses, ranking_losses, score_losses
from rlhf_dist.data.judgements import KINDS
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.trained_model import TrainedModel


@dataclass(frozen=True)
class RewardLoss:
    """L = sum over units of weight x loss, averaged over the ensemble's heads; weights hold the kinds' coefficients.

    Rows of the batch follow `data.judgements.judged_set`.
    """

    compare_scale: float
    margin: bool
    centre_coef: float

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss, and per kind sums of loss, hits and margins with their number of units."""
        rewards = batch.means(model(batch.packed, all_heads=True))
        total = rewards.sum() * 0.0  # a micro-batch of nothing still takes part in the backward pass
        facts: dict[str, float] = {}
        for kind in KINDS:
            losses, more = self._of(kind, rewards, batch.targets)
            weights = self._first(kind, batch.targets, "weight")
            total = total + (weights * losses).sum() / rewards.shape[1]
            sums = {"loss": losses.detach().mean(1).sum(), **more}
            facts |= {f"{kind}/{name}": float(value) for name, value in sums.items()} | {
                f"{kind}/units": float(len(losses))
            }
        return total, facts

    def _of(
        self, kind: str, rewards: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Losses [units of the kind, heads], and sums of what is worth knowing."""
        mine = targets["kind"] == KINDS[kind]
        if kind == "comparisons":
            return self._comparisons(rewards[mine], targets, mine)
        if kind == "rankings":
            return self._rankings(rewards[mine], targets["unit"][mine])
        labels = targets["label"][mine][:, None].expand(-1, rewards.shape[1])
        losses = score_losses(rewards[mine], labels)
        return losses, {"error": (torch.sigmoid(rewards[mine]) - labels).detach().abs().mean(1).sum()}

    def _comparisons(
        self, rewards: torch.Tensor, targets: dict[str, torch.Tensor], mine: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        a, b = rewards[0::2], rewards[1::2]
        labels = targets["label"][mine][0::2, None].expand(-1, rewards.shape[1])
        margins = targets["margin"][mine][0::2, None].expand(-1, rewards.shape[1])
        losses = comparison_losses(a, b, labels, margins * self.margin, scale=self.compare_scale)
        gap = (a - b).detach().mean(1)
        side = 2 * labels[:, 0] - 1
        facts = {"accuracy": accuracy(gap, labels[:, 0]).sum(), "margin": (gap * side).sum()}
        return losses + self.centre_coef * centring_losses(a, b), facts

    def _rankings(self, rewards: torch.Tensor, units: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        _, lengths = torch.unique_consecutive(units, return_counts=True)
        each = [ranking_losses(head, lengths, scale=self.compare_scale) for head in rewards.unbind(1)]
        return torch.stack(each, 1) if len(lengths) else rewards.new_zeros(0, rewards.shape[1]), {}

    def _first(self, kind: str, targets: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """A column's value of each unit of the kind, from the unit's first row."""
        mine = targets["kind"] == KINDS[kind]
        units = targets["unit"][mine]
        starts = torch.ones_like(units, dtype=torch.bool)
        starts[1:] = units[1:] != units[:-1]
        return targets[name][mine][starts]


def accuracy(gap: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How right a choice is by each gap r_a - r_b, [comparisons]: P(what people prefer), half at a gap of 0."""
    chosen = torch.where(gap == 0, torch.full_like(gap, 0.5), (gap > 0).to(gap.dtype))
    return chosen * labels + (1 - chosen) * (1 - labels)
