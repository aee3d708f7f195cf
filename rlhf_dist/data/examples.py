"""Supervised examples as the learner reads them: token ids, the positions whose output is wanted, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

_FIELDS = [
    pa.field("tokens", pa.list_(pa.int32()), nullable=False, metadata={"unit": "token id"}),
    pa.field(
        "selected", pa.list_(pa.int32()), nullable=False, metadata={"unit": "position", "meaning": "output is wanted"}
    ),
]
EXAMPLES = pa.schema(_FIELDS, metadata={"schema": "rlhf_dist.examples", "version": "2"})
"""Columns of every stage; a stage adds targets, as float32 [examples] or [examples, k]."""


@dataclass(frozen=True)
class ExampleSet:
    """What a supervised stage learns from: examples, and which of them belong together."""

    table: pa.RecordBatch
    """One row per token sequence, `EXAMPLES` and the stage's targets."""
    units: list[list[int]]
    """Rows that are trained on together, next to each other: one demonstration, both answers of a comparison."""
    weights: list[float]
    """What each unit adds to the number by which the summed loss is divided."""
    where: list[str] = field(default_factory=list)
    """File and line of each unit, where they are known."""
    mismatched: list[int] = field(default_factory=list)
    """Of each unit, the row with its prompt and an answer to another, where a loss asks for such (`data.unpaired`)."""

    @property
    def strata(self) -> list[float]:
        """What each unit is, as its first row's column `kind` says; all the same without one."""
        if "kind" not in self.table.schema.names:
            return [0.0] * len(self.units)
        kinds = self.table.column("kind").to_pylist()
        return [kinds[unit[0]] for unit in self.units]

    def lengths(self) -> list[int]:
        """Tokens of each unit."""
        tokens = self.table.column("tokens").value_lengths().to_pylist()
        return [sum(tokens[row] for row in unit) for unit in self.units]

    def selected(self, units: Sequence[int]) -> ExampleSet:
        """The same table with some of the units."""
        return replace(
            self,
            units=[self.units[unit] for unit in units],
            weights=[self.weights[unit] for unit in units],
            where=[self.where[unit] for unit in units] if self.where else [],
            mismatched=[self.mismatched[unit] for unit in units] if self.mismatched else [],
        )


def example_table(
    tokens: Sequence[Any], selected: Sequence[Any], targets: Mapping[str, Any] | None = None
) -> pa.RecordBatch:
    """Examples as one Arrow batch.

    Args:
        tokens: token ids of each example, a sequence or numpy array.
        selected: positions of each whose output is wanted, in order, likewise.
        targets: further columns, each [examples] or [examples, k] of numbers.
    """
    columns = [
        pa.array(list(tokens), _FIELDS[0].type),
        pa.array([list(chosen) for chosen in selected], _FIELDS[1].type),
    ]
    fields = [*_FIELDS]
    for name, values in (targets or {}).items():
        array = np.asarray(values, dtype=np.float32)
        flat = pa.array(array.reshape(-1))
        columns.append(flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1]))
        fields.append(pa.field(name, columns[-1].type, nullable=False))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=EXAMPLES.metadata))
