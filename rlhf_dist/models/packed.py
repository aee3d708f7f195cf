"""Token ids of several sequences in rows, one after the other, and which of their positions' outputs are wanted.

Layout: [rows, width] of token ids with restarting positions. Outputs are flat: one number per selected position, in the order
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

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same on another device."""
        return PackedBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


Positions = range | np.ndarray[Any, Any]


def pack(sequences: Sequence[np.ndarray[Any, Any]], selections: Sequence[Positions], rows: MicroBatch) -> PackedBatch:
    """Lay sequences out in rows.

    Args:
        sequences: token ids, each [length].
        selections: for each sequence the positions whose output is wanted, e.g. those that predict sampled tokens.
        rows: which sequences share a row; outputs come row by row. Empty: a batch of one token with nothing selected.
    """
    width = max((sum(len(sequences[i]) for i in row) for row in rows), default=1)
    input_ids = np.zeros((max(1, len(rows)), width), dtype=np.int64)
    position_ids = np.tile(np.arange(width, dtype=np.int64), (max(1, len(rows)), 1))
    select, targets = [], []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            tokens, wanted = sequences[index], np.asarray(selections[index])
            input_ids[number, start : start + len(tokens)] = tokens
            # Padding continues the last sequence's positions: causal attention hides it, and no mask is needed.
            position_ids[number, start:] = np.arange(width - start)
            select.append(number * width + start + wanted)
            targets.append(np.append(tokens, 0)[wanted + 1])
            start += len(tokens)
    chosen = np.concatenate(select) if select else np.zeros(0, dtype=np.int64)
    following = np.concatenate(targets).astype(np.int64) if targets else np.zeros(0, dtype=np.int64)
    return PackedBatch(*(torch.from_numpy(array) for array in (input_ids, position_ids, chosen, following)))


def selected_hidden(backbone: Any, batch: PackedBatch) -> torch.Tensor:
    """What a model without its head says at the selected positions, [selected, hidden]."""
    out = backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    hidden: torch.Tensor = out.last_hidden_state.flatten(0, 1)[batch.select]
    return hidden
