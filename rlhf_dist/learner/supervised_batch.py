"""What one step of a supervised stage learns from, as the controller deals it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SupervisedBatch:
    """What one supervised step learns from."""

    examples: Any
    """Handle of all examples of the stage (an `ExampleSet`'s table) in shared memory."""
    units: Sequence[Sequence[int]]
    """Example numbers of this step; those of one unit share a row, e.g. both answers of a comparison."""
    lengths: Sequence[int]
    """Tokens of each unit."""
    count: float
    """What the summed loss is divided by: the weight of all units, over all ranks."""
    draws: int = 0
    """Seed of what is drawn in this step, as dropout is."""
    where: Sequence[str] = ()
    """File and line of each unit, where they are known."""

    def name_of(self, example: int) -> str:
        """What to call an example in messages."""
        places = [place for unit, place in zip(self.units, self.where, strict=False) if example in unit]
        return f"example {example}" + "".join(f" ({place})" for place in places)
