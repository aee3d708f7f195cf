"""Rows of the store as one Arrow batch with every column, for metrics, for keeping, and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rlhf_dist.store.experience import RowView
from rlhf_dist.store.schema import EXPERIENCE


def read_batch(views: Sequence[RowView], blocks: dict[Any, pa.RecordBatch]) -> pa.RecordBatch:
    """Assemble rows, in their order.

    Args:
        views: rows of the store.
        blocks: handle to Arrow batch, for every block that the rows lie in.
    """
    columns = []
    for field in EXPERIENCE:
        writer = field.metadata[b"writer"].decode()
        cells = [
            blocks[view.slices[writer].block].column(field.name).slice(view.slices[writer].row, 1) for view in views
        ]
        columns.append(pa.concat_arrays(cells))
    return pa.RecordBatch.from_arrays(columns, schema=EXPERIENCE)


def blocks_of(views: Sequence[RowView]) -> list[Any]:
    """Handles of every block that the rows lie in, each once."""
    return list({part.block for view in views for part in view.slices.values()})
