"""KTO: what a step's loss is, for which its reference point is found first, over all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlhf_dist.algorithms.feedback_losses import KTO_BALANCE, kto_losses, kto_reference_point, kto_weights
from rlhf_dist.config import DPOConfig
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.stages.preference_losses import mean_log_probs
from rlhf_dist.stages.reward_loss import accuracy
from rlhf_dist.stages.supervised import UNITS, batch_of

SIDES = ("desirable", "undesirable")


@dataclass(frozen=True)
class KTOLoss:
    """KTO's loss on packed answers; the column `reference` has each answer's mean log-prob under the reference."""

    beta: float
    weights: tuple[float, float]
    """Of desirable and undesirable answers."""
    counts: tuple[float, float]
    """How many of each are learnt; those with soft labels in part."""
    reference_point: float = 0.0
    """z of the step, in nats per answer; `settled` finds it."""

    @classmethod
    def of(cls, config: DPOConfig, learnt: ExampleSet) -> KTOLoss:
        """As a stage's settings have it, with weights that suit what it learns."""
        labels = learnt.table.column("label").to_pylist()[: len(learnt.units)]
        counts = sum(labels), sum(1 - label for label in labels)
        weights = kto_weights(*counts, given=(config.desirable_weight, config.undesirable_weight))
        return cls(config.scale, weights, counts)

    def settled(self, learner: LearnerGroup, stored: Any, units: ExampleSet) -> KTOLoss:
        """The loss of some units: the policy is asked, as it is now, about their mismatched pairs.

        Args:
            learner: holds the policy as `model`.
            stored: handle of the units' table.
            units: all that a step learns from, or an evaluation looks at.
        """
        rows = units.mismatched
        asked = replace(units, units=[[row] for row in rows], weights=[1.0] * len(rows), mismatched=[])
        said = learner.predict("model", batch_of(stored, asked)) if rows else {}
        reference, lengths = units.table.column("reference"), units.table.column("selected").value_lengths()
        ratios = [(said[row][0] - reference[row].as_py()) * lengths[row].as_py() for row in rows]
        return replace(self, reference_point=kto_reference_point(ratios))

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss, and sums of hits and margins around the reference point, also by side, with implicit rewards."""
        labels = batch.targets["label"]
        ratios = (mean_log_probs(model, batch) - batch.targets["reference"]) * batch.lengths
        losses = kto_losses(
            ratios,
            labels,
            reference_point=self.reference_point,
            beta=self.beta,
            desirable_weight=self.weights[0],
            undesirable_weight=self.weights[1],
        )
        reward = self.beta * ratios.detach()
        lead = reward - self.beta * self.reference_point
        sums = {
            "accuracy": accuracy(lead, labels),
            "margin": lead * (2 * labels - 1),
            "reference_point": torch.full_like(lead, self.reference_point),
        }
        for name, share, ahead in zip(SIDES, (labels, 1 - labels), (lead, -lead), strict=True):
            hits = accuracy(ahead, torch.ones_like(ahead))
            sums |= {f"{name}/accuracy": share * hits, f"{name}/reward": share * reward, f"{name}/{UNITS}": share}
        return losses.sum(), {name: float(values.sum()) for name, values in sums.items()}

    def describe(self) -> str:
        """How many answers of each side there are, and what they weigh."""
        (desirable, undesirable), (own, other) = self.counts, self.weights
        told = f"{desirable:.6g} desirable, {undesirable:.6g} undesirable, of weights {own:.3g} and {other:.3g}"
        if not desirable or not undesirable:
            return f"{told}: KTO has only one side to learn from"
        together = own * desirable / (other * undesirable)
        fits = 1 - 1e-9 <= together <= KTO_BALANCE + 1e-9
        return f"{told}: together {together:.3g} times as much" + ("" if fits else "; KTO's authors take 1 to 1.33")

    def told(self, found: Mapping[str, float]) -> str:
        """What an evaluation found, for people."""
        sides = [
            f"of {name} answers {found[f'{name}/accuracy']:.1%}, with a mean implicit reward of {found[f'{name}/reward']:.3f}"
            for name in SIDES
            if f"{name}/accuracy" in found
        ]
        return (
            f"There {found['accuracy']:.1%} are on their side of the reference point (the policy's KL of "
            f"{found['reference_point']:.3f} nats per answer), by a margin of {found['margin']:.3f} in implicit reward: "
            f"{'; '.join(sides)}."
        )
