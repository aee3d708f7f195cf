"""A micro-batch of supervised examples, as a stage's loss reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.data.examples import EXAMPLES
from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.models import PackedBatch, pack


@dataclass(frozen=True)
class ExampleBatch:
    """Packed examples, in order; the examples of one unit follow each other."""

    packed: PackedBatch
    lengths: torch.Tensor
    """[examples], selected positions of each."""
    targets: dict[str, torch.Tensor]
    """The stage's own columns, float32 [examples] or [examples, k]."""
    numbers: tuple[int, ...]
    """Of the examples in the stage's table."""

    def to(self, device: torch.device | str) -> ExampleBatch:
        """The same on another device."""
        targets = {name: values.to(device) for name, values in self.targets.items()}
        return ExampleBatch(self.packed.to(device), self.lengths.to(device), targets, self.numbers)

    def means(self, outputs: torch.Tensor) -> torch.Tensor:
        """Mean of the outputs at each example's selected positions: [selected, ...] to [examples, ...]."""
        sums = segment_sums(outputs, self.lengths)
        return sums / self.lengths.clamp(min=1).reshape(-1, *[1] * (outputs.ndim - 1))

    def odd_ones(self) -> list[int]:
        """Numbers of the examples whose targets are not finite, or of all where no example stands out."""
        odd = [~values.reshape(len(self.numbers), -1).isfinite().all(1) for values in self.targets.values()]
        found = torch.stack(odd).any(0).nonzero().flatten().tolist() if odd else []
        return [self.numbers[index] for index in found] or list(self.numbers)


def read_examples(table: pa.RecordBatch, micro: MicroBatch) -> ExampleBatch:
    """Pack some rows of an `ExampleSet`'s table.

    Args:
        table: all examples of the stage.
        micro: row numbers, by packed row.
    """
    order = [index for row in micro for index in row]
    tokens, selected = table.column("tokens"), table.column("selected")
    numbers = iter(range(len(order)))
    packed = pack(
        [tokens[index].values.to_numpy() for index in order],
        [selected[index].values.to_numpy() for index in order],
        [[next(numbers) for _ in row] for row in micro],
    )
    lengths = torch.tensor([len(selected[index]) for index in order], dtype=torch.int64)
    names = [field.name for field in table.schema if field.name not in EXAMPLES.names]
    return ExampleBatch(packed, lengths, {name: _column(table, name, order) for name in names}, tuple(order))


def _column(table: pa.RecordBatch, name: str, order: list[int]) -> torch.Tensor:
    taken = table.column(name).take(pa.array(order, pa.int64()))
    if pa.types.is_fixed_size_list(taken.type):
        values = taken.flatten().to_numpy(zero_copy_only=False).reshape(-1, taken.type.list_size)
    else:
        values = taken.to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values, dtype=np.float32))
