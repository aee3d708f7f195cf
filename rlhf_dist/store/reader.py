"""Rows of the store as one Arrow batch with every column, for metrics, for keeping, and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rlhf_dist.store.experience import RowView
from rlhf_dist.store.schema import COLUMNS, writer_of


def read_batch(views: Sequence[RowView], blocks: dict[Any, pa.RecordBatch]) -> pa.RecordBatch:
    """Assemble rows, in their order, with the columns of every writer that they have.

    Args:
        views: rows of the store, at least one.
        blocks: handle to Arrow batch, for every block that the rows lie in.
    """
    fields = [field for field in COLUMNS if writer_of(field) in views[0].slices]
    columns = []
    for field in fields:
        parts = [view.slices[writer_of(field)] for view in views]
        columns.append(pa.concat_arrays([blocks[part.block].column(field.name).slice(part.row, 1) for part in parts]))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=COLUMNS.metadata))


def blocks_of(views: Sequence[RowView]) -> list[Any]:
    """Handles of every block that the rows lie in, each once."""
    return list({part.block for view in views for part in view.slices.values()})
