"""Demonstrations beside PPO: PPO-ptx (Ouyang et al. 2022, arXiv:2203.02155, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.learner.example_batch import read_examples
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import at_temperature


@dataclass(frozen=True)
class Imitation:
    """The demonstrations that one rank is shown during a PPO update."""

    table: list[Any]
    """One handle of all examples, in a list so that Ray hands the handle over and not its value."""
    micros: list[list[MicroBatch]]
    """Micro-batches of each optimiser step."""
    tokens: list[float]
    """Tokens to learn in each step, over all ranks."""


def imitate(
    policy: TrainedModel, shown: Imitation, table: pa.RecordBatch, step: int, *, coefficient: float, ranks: int
) -> tuple[float, float]:
    """Add the gradients of coefficient times the mean negative log-likelihood of a step's demonstrations.

    Args:
        policy: what learns; at temperature 1, whatever PPO samples at.
        shown: this rank's part.
        table: all examples.
        step: number of the optimiser step in the update.
        coefficient: weight beside PPO's loss.
        ranks: data-parallel ranks, over which the gradients are averaged.

    Returns:
        this rank's summed loss in nats, and its tokens.
    """
    total, tokens = 0.0, 0
    with at_temperature(policy.module, 1.0):
        for micro in shown.micros[step]:
            batch = read_examples(table, micro).to(policy.device)
            loss = -policy(batch.packed)[0].sum()
            policy.backward(loss * (coefficient * ranks / shown.tokens[step]))
            total += float(loss.detach())
            tokens += int(batch.lengths.sum())
    return total, float(tokens)
