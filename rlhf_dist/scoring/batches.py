"""Micro-batches of bounded tokens, for models that only look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rlhf_dist.data.packing import micro_batches, pack_rows
from rlhf_dist.models import PackedBatch, Positions, pack
from rlhf_dist.models.wrapped import RowLayout
from rlhf_dist.progress import step


@torch.no_grad()
def each_output(
    model: Callable[[PackedBatch], torch.Tensor],
    sequences: Sequence[Any],
    selections: Sequence[Positions],
    *,
    batch_tokens: int,
    device: str,
    layout: RowLayout = RowLayout.PACKED,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Number of each sequence, in no order, and the model's outputs at its selected positions, [selected, ...].

    Args:
        model: takes a packed batch; outputs are flat.
        sequences: token ids, each [length] of numpy int32.
        selections: wanted positions of each.
        batch_tokens: most tokens of a micro-batch, padding in.
        device: where the model is.
        layout: how sequences must lie in rows for it.
    """
    lengths = [len(sequence) for sequence in sequences]
    rows = pack_rows(range(len(lengths)), lengths, row_tokens=layout.row_tokens(max(lengths), batch_tokens))
    for micro in micro_batches(rows, lengths, budget=batch_tokens):
        outputs = model(pack(sequences, selections, micro).to(device))
        step()
        order = [number for row in micro for number in row]
        yield from zip(order, outputs.split([len(selections[number]) for number in order]), strict=True)
