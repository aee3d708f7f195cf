"""When which fault comes: a function of the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_dist.config.chaos import FaultKind

Moment = Literal["generating", "scoring", "publishing", "between", "saving"]
"""Where in an iteration: a worker has pulled weights, samples are there, the learner has learnt, the iteration is recorded, a
checkpoint is half written."""
FIRST = 2
"""Iterations before the first fault, so that there are checkpoints."""
SETTLED = 2
"""A run has got over a fault when it is so many iterations further than ever before."""
TAIL = 4
"""Iterations after the last fault."""


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule."""

    number: int
    kind: FaultKind
    iteration: int
    """It comes in this iteration or, while the run is still busy with the fault before, in a later one."""
    moment: Moment
    choice: float
    """In [0, 1): which of several processes or files, which of their bits."""

    @property
    def does(self) -> str:
        """What is done."""
        return self.kind.split(" ")[0]

    @property
    def target(self) -> str:
        """To what, or how."""
        return self.kind.split(" ")[1]

    @property
    def ends_driver(self) -> bool:
        """Whether the driver is what it is done to, or is killed first."""
        return self.does in ("flip", "cut", "tear") or self.kind in ("kill driver", "end driver")

    @property
    def may_end(self) -> frozenset[int]:
        """Exit codes with which the run may end, to be resumed; empty: it has to go on by itself."""
        if self.ends_driver:
            return frozenset({143 if self.does == "end" else -9})
        return frozenset({3}) if self.kind in ("server nan", "server short", "server huge") else frozenset()


def schedule(kinds: Sequence[FaultKind], faults: int, *, gap: int, seed: int) -> list[Fault]:
    """So many faults, in shuffled rounds of all kinds."""
    draw = random.Random(seed)
    order: list[FaultKind] = []
    while len(order) < faults:
        order += draw.sample(kinds, len(kinds))
    return [
        Fault(
            number,
            kind,
            FIRST + number * gap + draw.randrange(gap - SETTLED),
            draw.choice(get_args(Moment)),
            draw.random(),
        )
        for number, kind in enumerate(order[:faults])
    ]


def iterations(faults: int, *, gap: int) -> int:
    """Iterations that a run with so many faults takes."""
    return FIRST + faults * gap + TAIL
