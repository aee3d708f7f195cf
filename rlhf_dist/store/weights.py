"""Weight versions: buckets of tensors as Arrow tables, and the manifests that name them.

One table is one bucket, one row is one tensor. The data column refers to the tensors' own memory, so the only copy on the
way out is the one into shared memory, and on the way in the tensors are views of that shared memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from rlhf_dist.errors import StoreError, WeightError
from rlhf_dist.store.checksums import Bytes, Look, checksums

if TYPE_CHECKING:
    import torch

BUCKET = pa.schema(
    [
        pa.field(
            "name", pa.string(), nullable=False, metadata={"meaning": "parameter's name in the Hugging Face model"}
        ),
        pa.field("dtype", pa.string(), nullable=False, metadata={"meaning": "torch's name of the element type"}),
        pa.field("shape", pa.list_(pa.int64()), nullable=False, metadata={"unit": "elements"}),
        pa.field("checksum", pa.uint64(), nullable=False, metadata={"meaning": "see `store.checksums`"}),
        pa.field(
            "data", pa.large_binary(), nullable=False, metadata={"unit": "bytes", "meaning": "row-major elements"}
        ),
    ],
    metadata={"schema": "rlhf_dist.weights", "version": "2"},
)

KEPT_VERSIONS = 2
IN_PLACE = ("data", "changed")
"""Columns with bytes of tensors."""
CHECKING_THREADS = 8
"""With which memory is read about as fast as it can be."""


class Moved(NamedTuple):
    """What adapters change of some weights, and what is left of it in the dtype of the wire; sums over elements."""

    wanted: float = 0.0
    """Squares of the change."""
    arrived: float = 0.0
    """Squares of round(W + change) - round(W)."""
    both: float = 0.0
    """Products of the two."""

    def plus(self, other: Self) -> Moved:
        """Of more weights."""
        return Moved(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def kept(self) -> float | None:
        """Cosine between the two: 1 where nothing is lost, 0 where the change vanishes or drowns in rounding; None: no change.

        The ratio of their norms would be 1 and more for a change of less than a spacing that moves few weights by a whole one.
        """
        if not self.wanted:
            return None
        return min(1.0, self.both / sqrt(self.wanted * self.arrived)) if self.arrived else 0.0


@dataclass
class Sent:
    """What a learner rank says of the buckets that it has sent."""

    names: list[list[str]] = field(default_factory=list)
    """Of each bucket."""
    num_bytes: int = 0
    odd: list[str] = field(default_factory=list)
    """Names of tensors that are not finite: the version must be refused."""
    moved: Moved = field(default_factory=Moved)
    """What rounding leaves of what adapters change."""


@dataclass(frozen=True)
class Probe:
    """A sequence and the learner's log-probs of its tokens, for engines to compare theirs with."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Of tokens[1:], in nats, at temperature 1."""


@dataclass(frozen=True)
class Manifest:
    """One weight version: all weights or, `partial`, those that adapters change, to go on top of any complete one.

    With a `base` its buckets say what changed since then: see `store.deltas`.
    """

    version: int
    names: tuple[str, ...]
    num_bytes: int
    buckets: tuple[Any, ...]
    """Handles to the tables: object references on a cluster, tables in tests."""
    probe: Probe | None = None
    partial: bool = False
    base: Manifest | None = None
    """A version with the same names in the same buckets, itself without a base."""


def plan_buckets(sizes: Sequence[tuple[str, int]], *, bucket_bytes: int) -> list[list[str]]:
    """Cut named tensors, in order, into buckets of at most `bucket_bytes` (a larger tensor is a bucket of its own)."""
    buckets: list[list[str]] = []
    filled = bucket_bytes + 1
    for name, size in sizes:
        if filled + size > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


def encode_bucket(
    tensors: Iterable[tuple[str, torch.Tensor]], *, threads: Executor | None = None, look: Look | None = None
) -> pa.Table:
    """Tensors as one bucket that refers to their memory (CPU tensors) or to a CPU copy of it.

    Args:
        tensors: with their names.
        threads: hash on several of them at once.
        look: is shown the bytes as they are hashed; see `checksums`.
    """
    import torch

    named = [(name, tensor.detach()) for name, tensor in tensors]
    data = [tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy() for _, tensor in named]
    return table_of(
        BUCKET,
        (
            Cell(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), checksum, pa.py_buffer(own))
            for (name, tensor), own, checksum in zip(
                named, data, checksums(data, threads=threads, look=look), strict=True
            )
        ),
    )


class Cell(NamedTuple):
    """One tensor of a bucket, where it lies."""

    name: str
    dtype: str
    """Torch's name of it."""
    shape: tuple[int, ...]
    checksum: int
    data: pa.Buffer
    changed: pa.Buffer | None = None
    """Of deltas only: see `store.deltas`."""

    @property
    def num_bytes(self) -> int:
        """Of what is sent of it."""
        sent = self.data.size + (self.changed.size if self.changed is not None else 0)
        return int(sent)

    @property
    def bytes(self) -> Bytes:
        """Of the tensor, in place."""
        return np.frombuffer(self.data, dtype=np.uint8)

    def tensor(self) -> torch.Tensor:
        """A read-only view."""
        return tensor_of(self.bytes, self.dtype, self.shape)


def cells_of(table: pa.Table) -> Iterator[Cell]:
    """The tensors of a bucket, in place and unread."""
    for batch in table.to_batches():
        heads = [batch.column(name).to_pylist() for name in ("name", "dtype", "shape", "checksum")]
        heads[2] = [tuple(shape) for shape in heads[2]]
        cells = [
            _buffers(batch.column(name)) if name in table.column_names else [None] * len(batch) for name in IN_PLACE
        ]
        yield from map(Cell, *heads, *cells)


def reading_threads() -> int:
    """Threads that read a version in this process."""
    return min(CHECKING_THREADS, len(os.sched_getaffinity(0)))


def check_buckets(tables: Iterable[pa.Table]) -> None:
    """Read all bytes of some buckets once, on several threads.

    Raises:
        WeightError: a tensor does not have the checksum that was taken when it was published.
    """
    with ThreadPoolExecutor(reading_threads()) as threads:
        _check([cell for table in tables for cell in cells_of(table)], threads)


def check_bucket(table: pa.Table) -> None:
    """The same of one, on the caller's thread."""
    _check([*cells_of(table)])


def decode_bucket(table: pa.Table) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a bucket as read-only views of its memory, each checked first.

    Raises:
        WeightError: see `check_buckets`.
    """
    for cell in cells_of(table):
        _check([cell])
        yield cell.name, cell.tensor()


def _check(cells: Sequence[Cell], threads: Executor | None = None) -> None:
    for cell, found in zip(cells, checksums([cell.bytes for cell in cells], threads=threads), strict=True):
        if found != cell.checksum:
            raise WeightError(
                f"weight {cell.name}: checksum {found:016x}; expected {cell.checksum:016x}: its bytes changed on the way"
            )


def table_of(schema: pa.Schema, rows: Iterable[Cell]) -> pa.Table:
    """A bucket that refers to the memory of its rows."""
    return pa.Table.from_batches([_batch(schema, row) for row in rows], schema=schema)


def _batch(schema: pa.Schema, row: Cell) -> pa.RecordBatch:
    columns = [
        _cell_of(getattr(row, field.name))
        if field.name in IN_PLACE
        else pa.array([getattr(row, field.name)], field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cell_of(data: pa.Buffer | None) -> pa.LargeBinaryArray:
    if data is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _buffers(column: pa.LargeBinaryArray) -> list[pa.Buffer | None]:
    """Cells in place; `column[row].as_buffer()` would copy them."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    known = column.is_valid().to_pylist()
    return [data.slice(a, b - a) if here else None for a, b, here in zip(ends, ends[1:], known, strict=False)]


def tensor_of(memory: np.ndarray[Any, Any], dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Bytes as a tensor, which nobody may write to: torch has none that are read-only, and would warn."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
        return torch.from_numpy(memory).view(getattr(torch, dtype)).view(tuple(shape))


class WeightIndex:
    """The newest versions, and the newest complete one; older ones are forgotten, and freed with their last reader.

    What adapters do not change never changes, so the newest partial version on top of any complete one is the newest whole.
    """

    def __init__(self) -> None:
        """Start without any version."""
        self._manifests: dict[int, Manifest] = {}

    @property
    def newest(self) -> Manifest | None:
        """The manifest of the newest version."""
        return self._manifests[max(self._manifests)] if self._manifests else None

    def to_load(self, *, has_one: bool) -> list[Manifest]:
        """What makes an engine one of the newest version, to be loaded in this order; none before the first.

        Args:
            has_one: whether the engine has any of these versions whole.
        """
        newest = self.newest
        if newest is None:
            return []
        return [newest] if has_one or not newest.partial else [self._manifests[self._newest_complete()], newest]

    def base_of(self, version: int, *, partial: bool, every: int) -> Manifest | None:
        """The version on which another is to be a delta; None: it is to be whole, as every so many are."""
        found = self._manifests.get(self._newest_whole(partial=partial))
        return found if found is not None and version - found.version < every else None

    def add(self, manifest: Manifest) -> None:
        """Make a version visible.

        Raises:
            StoreError: the version is not newer than the newest, or is partial without a complete one before it.
        """
        if self.newest is not None and manifest.version <= self.newest.version:
            raise StoreError(f"weight version {manifest.version} published after version {self.newest.version}")
        if self.newest is None and manifest.partial:
            raise StoreError(f"weight version {manifest.version} is partial; expected a complete one first")
        self._manifests[manifest.version] = manifest
        bases = {self._newest_whole(partial=partial) for partial in (False, True)}
        kept = {*sorted(self._manifests)[-KEPT_VERSIONS:], self._newest_complete(), *bases}
        self._manifests = {version: each for version, each in self._manifests.items() if version in kept}

    def _newest_complete(self) -> int:
        return max(version for version, each in self._manifests.items() if not each.partial)

    def _newest_whole(self, *, partial: bool) -> int:
        """Number of the newest version that is no delta; -1: there is none."""
        whole = (version for version, each in self._manifests.items() if each.base is None and each.partial == partial)
        return max(whole, default=-1)

    def num_bytes(self) -> int:
        """Bytes of all versions held, bases among them."""
        held = [*self._manifests.values()]
        held += [each.base for each in held if each.base is not None]
        return sum({each.version: each.num_bytes for each in held}.values())
