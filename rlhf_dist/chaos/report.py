"""What chaos did and found, as a table and in the shape of the benchmarks' results."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Aftermath:
    """How a run took one fault."""

    fault: str
    iteration: int
    moment: str
    what: str
    noticed_s: float | None
    """Until a warning in a log or the driver's end; None: the driver was killed, or the run said nothing."""
    said: str
    went_on: str
    """By itself, or resumed after the driver's end with a code."""
    on_again_s: float | None
    """Until it was further than ever before; None: it never was."""


@dataclass
class Report:
    """All outcomes, and every invariant that broke."""

    seed: int
    iterations: int
    seconds: float = 0.0
    outcomes: list[Aftermath] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        rows: list[dict[str, Any]] = [asdict(outcome) for outcome in self.outcomes]
        figures = {
            "faults": len(rows),
            "broken": len(self.broken),
            "resumed": sum(outcome.went_on.startswith("resumed") for outcome in self.outcomes),
            "noticed_s_median": _median([outcome.noticed_s for outcome in self.outcomes]),
            "noticed_s_max": max((outcome.noticed_s or 0.0 for outcome in self.outcomes), default=0.0),
            "on_again_s_median": _median([outcome.on_again_s for outcome in self.outcomes]),
            "on_again_s_max": max((outcome.on_again_s or 0.0 for outcome in self.outcomes), default=0.0),
            "iterations": self.iterations,
            "seconds": self.seconds,
            "seed": self.seed,
        }
        return {
            "name": "chaos",
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "figures": figures,
            "rows": [*rows, *({"broken": sentence} for sentence in self.broken)],
        }

    def show(self, console: Console) -> None:
        """Print the table, and a sentence for each invariant that broke."""
        table = Table("", "fault", "in", "what was done", "noticed", "what the run said", "on again", title="Chaos")
        for number, each in enumerate(self.outcomes):
            again = f"{each.went_on}, {_seconds(each.on_again_s)}"
            where = f"{each.iteration}, {each.moment}"
            table.add_row(str(number), each.fault, where, each.what, _seconds(each.noticed_s), each.said, again)
        console.print(table)
        for sentence in self.broken:
            console.print(f"broken: {sentence}", style="bold red", markup=False, highlight=False)
        console.print(f"{len(self.outcomes)} faults, {len(self.broken)} broken, {self.seconds:.0f} s, seed {self.seed}")


def _median(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else 0.0


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
