"""A weight version as what changed since another one, in the dtype of the wire, where at RL's learning rates most does not.

Of each tensor: which elements changed, as bits, and the changed ones' bits by exclusive or; both compressed. That is a third
smaller than compressing the exclusive or of everything, and three times as fast (benchmarks/weight_sync.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rlhf_dist.errors import WeightError
from rlhf_dist.store.checksums import Look
from rlhf_dist.store.weights import BUCKET, Cell, Manifest, cells_of, encode_bucket, reading_threads, table_of

if TYPE_CHECKING:
    import torch

DELTA = pa.schema(
    [
        *(BUCKET.field(name) for name in ("name", "dtype", "shape")),
        pa.field("checksum", pa.uint64(), nullable=False, metadata={"meaning": "of the tensor that results"}),
        pa.field(
            "changed",
            pa.large_binary(),
            metadata={
                "meaning": "a bit per element, most significant first, Zstandard; null: `data` is the whole tensor"
            },
        ),
        pa.field(
            "data",
            pa.large_binary(),
            nullable=False,
            metadata={"meaning": "exclusive or of old and new of the changed elements in their order, Zstandard"},
        ),
    ],
    metadata={"schema": "rlhf_dist.weight_deltas", "version": "2"},
)
_CODEC = pa.Codec("zstd", 1)
"""Higher levels take longer and save nothing here."""


def encode_delta(
    base: pa.Table,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    threads: Executor | None = None,
    look: Look | None = None,
) -> pa.Table:
    """A bucket as its difference to an older one of the same tensors; what would be larger so is whole.

    Args:
        base: the older bucket, `BUCKET`.
        tensors: the new ones, in the same order.
        threads: compare several of them at once.
        look: as in `encode_bucket`.

    Raises:
        WeightError: they are not the same tensors.
    """
    return table_of(DELTA, _together(_difference, base, encode_bucket(tensors, threads=threads, look=look), threads))


def apply_delta(base: pa.Table, delta: pa.Table, *, threads: Executor | None = None) -> pa.Table:
    """The bucket that a delta was made of, `BUCKET`; `decode_bucket` proves it by its checksums.

    Args:
        base: the bucket on which it was made.
        delta: of `encode_delta`.
        threads: work on several tensors at once.

    Raises:
        WeightError: they are not of the same tensors.
    """
    return table_of(BUCKET, _together(_result, base, delta, threads))


def whole_tables(manifest: Manifest, get: Callable[[Sequence[Any]], list[pa.Table]]) -> list[pa.Table]:
    """A version's buckets, `BUCKET`, put together from its base where it has one.

    The base's buckets are shared memory that a node fetches once for all versions on it, by whichever reader comes first: who
    has missed versions, or begins, needs no others.

    Args:
        manifest: the version's.
        get: the tables behind handles.
    """
    tables = get(manifest.buckets)
    if manifest.base is None:
        return tables
    bases = get(manifest.base.buckets)
    with ThreadPoolExecutor(reading_threads()) as threads:
        return [apply_delta(base, delta, threads=threads) for base, delta in zip(bases, tables, strict=True)]


def _together(
    make: Callable[[Cell, Cell], Cell], base: pa.Table, other: pa.Table, threads: Executor | None
) -> Iterable[Cell]:
    pairs = [*zip_longest(cells_of(base), cells_of(other))]
    for one, two in pairs:
        if one is None or two is None or one[:3] != two[:3]:
            found, expected = (row and f"{row.name} {row.dtype} {row.shape}" for row in (two, one))
            raise WeightError(f"a delta on another bucket: {found}; its base has {expected}")
    return (map if threads is None else threads.map)(lambda pair: make(*pair), pairs)


def _difference(base: Cell, new: Cell) -> Cell:
    old, now = (_elements(row.data, row.dtype) for row in (base, new))
    different = old != now
    changed = _compressed(np.packbits(different))
    where = np.flatnonzero(different)  # three times as fast as to index by what is true
    data = _compressed(old[where] ^ now[where])
    return new if changed.size + data.size >= new.data.size else new._replace(changed=changed, data=data)


def _result(base: Cell, delta: Cell) -> Cell:
    if delta.changed is None:
        return delta
    new = _elements(base.data, base.dtype).copy()
    bits = np.frombuffer(_CODEC.decompress(delta.changed, -(-len(new) // 8)), np.uint8)
    where = np.flatnonzero(np.unpackbits(bits, count=len(new)).view(np.bool_))
    new[where] ^= _elements(_CODEC.decompress(delta.data, len(where) * new.itemsize), base.dtype)
    return delta._replace(changed=None, data=pa.py_buffer(new))


def _elements(data: pa.Buffer, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    """A tensor's bits as unsigned integers of its elements' size, not copied."""
    import torch

    return np.frombuffer(data, np.dtype(f"u{getattr(torch, dtype).itemsize}"))


def _compressed(array: np.ndarray[Any, np.dtype[Any]]) -> pa.Buffer:
    return _CODEC.compress(pa.py_buffer(array))
