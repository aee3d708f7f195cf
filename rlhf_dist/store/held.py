"""Weights that stay where they were made: on a card, or in a host's memory, for engines beside the learner rank that holds them.

Rows say where the bytes are: no byte goes through the store. What says so are numbers and handles of the CUDA driver, not
pickled objects.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from rlhf_dist.errors import WeightError
from rlhf_dist.store.weights import BUCKET, tensor_of

if TYPE_CHECKING:
    import torch

_MEANING = {
    "checksum": "`digest` of the bytes",
    "where": "card, or host, on which they are",
    "file": "path that processes of this host and user may map; empty: `handle` counts",
    "handle": "of CUDA, of the memory around the bytes",
}
HELD = pa.schema(
    [
        *(BUCKET.field(name) for name in ("name", "dtype", "shape")),
        pa.field("checksum", pa.uint64(), nullable=False, metadata={"meaning": _MEANING["checksum"]}),
        pa.field("where", pa.string(), nullable=False, metadata={"meaning": _MEANING["where"]}),
        pa.field("file", pa.string(), nullable=False, metadata={"meaning": _MEANING["file"]}),
        pa.field(
            "handle",
            pa.struct(
                {
                    "memory": pa.binary(),
                    "size": pa.int64(),
                    "offset": pa.int64(),
                    "counter": pa.binary(),
                    "counter_offset": pa.int64(),
                    "event": pa.binary(),
                    "event_sync": pa.bool_(),
                }
            ),
            metadata={"meaning": _MEANING["handle"]},
        ),
        pa.field("offset", pa.int64(), nullable=False, metadata={"unit": "bytes"}),
        pa.field("size", pa.int64(), nullable=False, metadata={"unit": "bytes"}),
    ],
    metadata={"schema": "rlhf_dist.held_weights", "version": "1"},
)

PIECE = 2**24
"""Words of a tensor that are digested at once: 400 MB of a card's memory."""
ODD = -7046029254386353131
"""2**64 / golden ratio, as a signed number."""


class HeldTensor(NamedTuple):
    """One row of `HELD`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: int
    where: str
    file: str
    handle: dict[str, Any] | None
    offset: int
    size: int


def is_held(table: pa.Table) -> bool:
    """Whether a table tells where weights are, instead of having them."""
    return bool(table.schema.equals(HELD))


def held_rows(tables: Iterable[pa.Table]) -> list[HeldTensor]:
    """The rows of some tables."""
    rows = [HeldTensor(**row) for table in tables for row in table.to_pylist()]
    return [row._replace(shape=tuple(row.shape)) for row in rows]


def held_table(rows: Iterable[HeldTensor]) -> pa.Table:
    """The opposite."""
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=HELD)


@cache
def own_place() -> str:
    """The card of this process by its UUID, or the host as far as its processes find each other."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"host {boot} {os.stat('/proc/self/ns/pid').st_ino}"


def open_held(rows: Iterable[HeldTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that are where this process is, as views, each checked first; of several holders' the first one's.

    Raises:
        WeightError: none is here, or one is not what it was when it was published.
    """
    rows, here = [*rows], own_place()
    mine = {row.name: row for row in reversed(rows) if row.where == here}
    if missing := {row.name for row in rows} - mine.keys():
        places = ", ".join(sorted({row.where for row in rows}))
        raise WeightError(
            f"no learner rank holds {min(missing)} where this engine is ({here}), but on {places}. weights.transport cuda_ipc "
            "needs engines on the learners' cards; take store"
        )
    memories: dict[Any, torch.Tensor] = {}
    for name in dict.fromkeys(row.name for row in rows):
        row = mine[name]
        handle = row.handle or {}
        key = row.file or (handle["memory"], handle["offset"])
        if key not in memories:
            memories[key] = _mapped(row.file) if row.file else _opened(handle)
        tensor = _viewed(memories[key], row)
        if (found := digest(tensor)) != row.checksum:
            raise WeightError(
                f"weight {name}: digest {found:016x}; expected {row.checksum:016x}: the learner no longer holds this version"
            )
        yield name, tensor


def _viewed(memory: torch.Tensor, row: HeldTensor) -> torch.Tensor:
    import torch

    return memory[row.offset : row.offset + row.size].view(getattr(torch, row.dtype)).view(row.shape)


def _mapped(path: str) -> torch.Tensor:
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise WeightError(f"the learner's memory is not there any more: {error}") from error
    return tensor_of(np.frombuffer(memory, dtype=np.uint8), "uint8", (len(memory),))


def _opened(handle: dict[str, Any]) -> torch.Tensor:
    """A card's memory, as torch.multiprocessing opens it (torch/multiprocessing/reductions.py)."""
    import torch

    device = torch.cuda.current_device()
    names = ("memory", "size", "offset", "counter", "counter_offset", "event", "event_sync")
    storage = torch.UntypedStorage._new_shared_cuda(device, *(handle[name] for name in names))
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(storage)


def digest(tensor: torch.Tensor) -> int:
    """Of a tensor's bytes, computed where they are: the sum of its 32-bit words, each times an odd number of its place's.

    Modulo 2**64, so no change of a single word goes unseen, and a change of several one time in 2**64 by chance.
    """
    import torch

    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if odd := flat.numel() % 4:
        flat = torch.cat([flat, flat.new_zeros(4 - odd)])
    words, total = flat.view(torch.int32), 0
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE].long()
        places = torch.arange(start, start + len(piece), device=piece.device)
        total += int((piece * ((2 * places + 1) * ODD)).sum())
    return total % 2**64
