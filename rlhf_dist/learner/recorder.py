"""Metrics of an update: what ranks see, added up over all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

RATIO_MAX = "actor/ratio_max"
"""Largest ratio of a token's probabilities, new over old, in any mini-batch of the update; 5e8 at most."""
SMALLEST = " (smallest)"
"""After the name of a metric of which the smallest value is told."""
ROUNDING = 1e-12
"""Variance over squared mean, up to which fp32 returns are all the same."""


@dataclass(frozen=True)
class Ranks:
    """The data-parallel ranks, and how a float64 vector is summed over them, or its largest entries found."""

    number: int = 1
    sum: Callable[[torch.Tensor], torch.Tensor] = lambda vector: vector
    largest: Callable[[torch.Tensor], torch.Tensor] = lambda vector: vector

    @classmethod
    def over_group(cls, number: int, device: torch.device, *, speaks: bool) -> Ranks:
        """The ranks of the process group; all must call at once.

        Args:
            number: how many there are; one needs no group.
            device: where vectors are reduced.
            speaks: what this rank has counts; else another tells the same.
        """
        if number == 1:
            return cls()

        def reduced(vector: torch.Tensor, how: Any) -> torch.Tensor:
            moved = vector.to(device)
            torch.distributed.all_reduce(moved, how)
            return moved.cpu()

        kinds = torch.distributed.ReduceOp
        return cls(
            number,
            lambda vector: reduced(vector if speaks else torch.zeros_like(vector), kinds.SUM),
            lambda vector: reduced(vector, kinds.MAX),
        )


class Recorder:
    """Sums and counts of this rank, added over ranks once at the end. What is not finite is told elsewhere, and not added."""

    def __init__(self, ranks: Ranks) -> None:
        """Begin with nothing."""
        self.ranks = ranks
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = {}
        self.variance = torch.zeros(6, dtype=torch.float64)
        self.extremes: dict[str, float] = {}
        """Largest values by metric; of smallest ones, the negative under its name and `SMALLEST`."""

    def means(self, count: float, sums: Mapping[str, torch.Tensor]) -> None:
        """Add sums over `count` tokens, samples or steps, by metric."""
        for name, value in sums.items():
            number = float(value.detach())
            finite = math.isfinite(number)
            self.sums[name] += number if finite else 0.0
            self.counts[name] += count if finite else 0.0

    def largest(self, name: str, values: torch.Tensor) -> None:
        """Take values, of which the largest over all ranks is told."""
        finite = values[values.isfinite()]
        own = float(finite.max()) if len(finite) else -math.inf
        self.extremes[name] = max(self.extremes.get(name, -math.inf), own)

    def smallest(self, name: str, values: torch.Tensor) -> None:
        """The same of the smallest."""
        self.largest(f"{name}{SMALLEST}", -values)

    def step(self, model: str, facts: dict[str, float]) -> None:
        """Take what an optimiser step says: the gradient's norm is a mean over the steps, the learning rate the last one's."""
        self.means(1.0, {f"{model}/grad_norm": torch.tensor(facts["grad_norm"], dtype=torch.float64)})
        self.metrics[f"{model}/lr"] = facts["lr"]

    def sum_of(self, name: str) -> torch.Tensor:
        """This rank's sum so far, and its count, float64 [2]."""
        return torch.tensor([self.sums.get(name, 0.0), self.counts.get(name, 0.0)], dtype=torch.float64)

    def result(self) -> dict[str, float]:
        """All metrics, the same on every rank; without those of which nothing finite was seen."""
        names = sorted(self.sums)
        vector = [self.sums[name] for name in names] + [self.counts[name] for name in names]
        total = self.ranks.sum(torch.cat([torch.tensor(vector, dtype=torch.float64), self.variance]))
        sums, counts, variance = total.split([len(names), len(names), 6])
        means = {name: float(a / b) for name, a, b in zip(names, sums, counts, strict=True) if b}
        told = {**means, **self.metrics, "critic/vf_explained_var": explained(variance.view(2, 3)), **self._extremes()}
        return {name: value for name, value in told.items() if math.isfinite(value)}

    def _extremes(self) -> dict[str, float]:
        names = sorted(self.extremes)
        own = torch.tensor([self.extremes[name] for name in names], dtype=torch.float64)
        found = dict(zip(names, self.ranks.largest(own).tolist(), strict=True)) if names else {}
        return {
            name.removesuffix(SMALLEST): -value if name.endswith(SMALLEST) else value for name, value in found.items()
        }


def explained(moments_of: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); NaN where there are none, or they vary by rounding alone."""
    (n, error, error2), (_, returns, returns2) = moments_of
    mean = returns / n
    variance = returns2 / n - mean**2
    return float(1.0 - (error2 / n - (error / n) ** 2) / variance) if variance > ROUNDING * mean**2 else math.nan
