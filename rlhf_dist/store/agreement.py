"""Whether engine and learner say the same of a text: as it is read whole, and as it was decoded, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.algorithms.kl import k3
from rlhf_dist.store.row import extents_of, row_of


class Distance(NamedTuple):
    """How far an engine's log-probs of tokens are from the learner's."""

    diff: float
    """Mean distance, in nats."""
    k3: float
    """Mean of (r - 1) - log r with r = learner / engine: where engines sample, an estimate of KL(engine, learner)."""
    k3_max: float
    """Its largest value."""

    def within(self, tolerance: float) -> bool:
        """Whether the mean distance is small enough; NaN is not."""
        return self.diff <= tolerance

    def facts(self, name: str) -> dict[str, float]:
        """As metrics `NAME_diff`, `NAME_k3`, `NAME_k3_max`."""
        return {f"{name}_{field}": value for field, value in self._asdict().items()}


def agreement(engine: Sequence[float], learner: Sequence[float]) -> Distance:
    """Compare log-probs of the same tokens, in nats, at least one."""
    told, learnt = (torch.tensor(each, dtype=torch.float64) for each in (engine, learner))
    apart = k3(told, learnt)
    return Distance(float((told - learnt).abs().mean()), float(apart.mean()), float(apart.max()))


@dataclass(frozen=True)
class Decoded:
    """A finished sample, and what decoding said of it."""

    tokens: tuple[int, ...]
    predicting: tuple[int, ...]
    """Positions whose output predicts its sampled tokens."""
    log_probs: tuple[float, ...]
    """Of the sampled tokens, in nats, at the rollout's temperature."""

    def compared(self, learner: Sequence[float]) -> Distance:
        """With what the learner, whose weights it was sampled from, says of tokens[1:] at the same temperature."""
        return agreement(self.log_probs, [learner[position] for position in self.predicting])


def longest_sample(batch: pa.RecordBatch, version: int) -> Decoded | None:
    """The longest of the samples that were decoded wholly by a weight version; None: there is none.

    Args:
        batch: rows with the rollout's columns.
        version: that the learner still has.
    """
    for number in np.argsort(-extents_of(batch).whole, kind="stable").tolist():
        row = row_of(batch, number)
        if row.versions and {each for each, _ in row.versions} == {version}:
            said = batch.column("rollout_log_probs")[number].as_py()
            return Decoded(tuple(row.tokens.tolist()), tuple(row.predicting.tolist()), tuple(said))
    return None
