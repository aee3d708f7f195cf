"""Token ids of several sequences in rows, one after the other, and which of their positions' outputs are wanted.

RowLayout: [rows, width] of token ids with restarting positions. Outputs are flat: one number per selected position, in the order
of the sequences given to `pack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_dist.data.packing import MicroBatch


@dataclass(frozen=True)
class PackedBatch:
    """Token ids ready for a forward pass."""

    input_ids: torch.Tensor
    """[rows, width], int64."""
    position_ids: torch.Tensor
    """[rows, width], int64, restarting with each sequence."""
    select: torch.Tensor
    """[selected], flat positions in [rows * width] whose output is wanted."""
    targets: torch.Tensor
    """[selected], the token that follows each selected position (0 after a sequence's last token)."""
    starts: torch.Tensor
    """[sequences], flat positions at which the sequences begin, ascending."""
    lengths: torch.Tensor
    """[sequences], tokens of each."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same on another device."""
        return PackedBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def is_one_per_row(self) -> bool:
        """Whether no row holds two sequences."""
        return len(self.starts) <= len(self.input_ids)

    def one_per_row(self) -> PackedBatch:
        """The same sequences, each in a row of its own; outputs keep their order."""
        if self.is_one_per_row:
            return self
        width = int(self.lengths.max())
        return self._moved(len(self.starts) * width, torch.arange(len(self.starts)).to(self.starts) * width, width)

    def one_row(self) -> PackedBatch:
        """The same sequences one after the other in a single row without padding; outputs keep their order."""
        width = int(self.lengths.sum())
        if len(self.starts) == 0 or self.input_ids.shape == (1, width):
            return self
        return self._moved(width, self.lengths.cumsum(0) - self.lengths, width)

    def _moved(self, size: int, begin: torch.Tensor, width: int) -> PackedBatch:
        """Every sequence moved to the flat position where it begins in rows of another width."""
        within = torch.cat([torch.arange(int(length)) for length in self.lengths]).to(self.starts)
        old = torch.repeat_interleave(self.starts, self.lengths) + within
        new = torch.repeat_interleave(begin, self.lengths) + within
        place = self.input_ids.new_zeros(self.input_ids.numel())
        place[old] = new
        # Padding's positions go on from the sequence before it, but never beyond those of the longest.
        positions = torch.arange(size).to(self.starts) % width
        positions[new] = within
        ids = self.input_ids.new_zeros(size)
        ids[new] = self.input_ids.flatten()[old]
        shape = (-1, width)
        return PackedBatch(
            ids.view(shape), positions.view(shape), place[self.select], self.targets, begin, self.lengths
        )


Positions = range | np.ndarray[Any, Any]


def pack(sequences: Sequence[np.ndarray[Any, Any]], selections: Sequence[Positions], rows: MicroBatch) -> PackedBatch:
    """Lay sequences out in rows.

    Args:
        sequences: token ids, each [length].
        selections: for each sequence the positions whose output is wanted, e.g. those that predict sampled tokens.
        rows: which sequences share a row; outputs come row by row. Empty: a batch of one token with nothing selected.
    """
    width = max((sum(len(sequences[i]) for i in row) for row in rows), default=1)
    longest = max((len(sequences[i]) for row in rows for i in row), default=1)
    input_ids = np.zeros((max(1, len(rows)), width), dtype=np.int64)
    position_ids = np.tile(np.minimum(np.arange(width, dtype=np.int64), longest - 1), (max(1, len(rows)), 1))
    select, targets, starts, lengths = [], [], [], []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            tokens, wanted = sequences[index], np.asarray(selections[index])
            input_ids[number, start : start + len(tokens)] = tokens
            # Padding continues the last sequence's positions: causal attention hides it, and no mask is needed. It never
            # goes beyond the longest sequence's, which may be all that the model's table of positions has.
            position_ids[number, start:] = np.minimum(np.arange(width - start), longest - 1)
            select.append(number * width + start + wanted)
            targets.append(np.append(tokens, 0)[wanted + 1])
            starts.append(number * width + start)
            lengths.append(len(tokens))
            start += len(tokens)
    chosen = np.concatenate(select) if select else np.zeros(0, dtype=np.int64)
    following = np.concatenate(targets).astype(np.int64) if targets else np.zeros(0, dtype=np.int64)
    extents = (np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64))
    return PackedBatch(*(torch.from_numpy(each) for each in (input_ids, position_ids, chosen, following, *extents)))
