"""Columns hold numbers: one that is NaN or infinite is refused where it enters, with the name of its row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from rlhf_dist.errors import NumbersError
from rlhf_dist.records import RowKey


def check_finite(batch: pa.RecordBatch, worker: str, keys: Sequence[RowKey]) -> None:
    """Refuse a batch with a number that is not finite, at whatever depth of a column it stands.

    Args:
        batch: rows of some writer's columns.
        worker: who wrote them.
        keys: of the rows.

    Raises:
        NumbersError: names worker, column and sample.
    """
    for name in batch.schema.names:
        column = batch.column(name)
        if _is_finite(column):
            continue
        odd = [RowKey(*keys[row]) for row in range(batch.num_rows) if not _is_finite(column.slice(row, 1))]
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise NumbersError(
            f"{worker} wrote a {name} that is not finite, of {odd[0]}{more}; expected finite numbers. The row was not accepted"
        )


def _is_finite(column: pa.Array) -> bool:
    return all(np.isfinite(leaf.to_numpy(zero_copy_only=False)).all() for leaf in _leaves(column))


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """The floating-point arrays that a column is made of, of its own rows only."""
    kind = column.type
    if pa.types.is_floating(kind):
        yield column
    elif pa.types.is_map(kind):
        start, stop = column.offsets[0].as_py(), column.offsets[-1].as_py()
        yield from _leaves(column.items.slice(start, stop - start))
    elif pa.types.is_list(kind):
        yield from _leaves(column.flatten())
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            yield from _leaves(child)
