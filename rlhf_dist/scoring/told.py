"""What is told of every prompt's row, for scorers of other processes: an Arrow table that all those of a node share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.records import Prompt, RowTold


class ToldOf:
    """`RowTold` by a prompt's id. In the object store a node's scorers read one copy: a million rows of 200 bytes are 200 MB."""

    def __init__(self, table: pa.Table) -> None:
        """Take what `told_of` made."""
        self._ids = table.column("id").to_numpy()
        self._columns, self._source = (table.column(name).combine_chunks() for name in ("columns", "source"))

    def of(self, ids: Sequence[int]) -> list[RowTold]:
        """Of some prompts; nothing of those that are not there."""
        places = np.searchsorted(self._ids, ids).tolist()
        return [
            self._at(place) if self._is(place, each) else RowTold() for place, each in zip(places, ids, strict=True)
        ]

    def _is(self, place: int, prompt: int) -> bool:
        return place < len(self._ids) and int(self._ids[place]) == prompt

    def _at(self, place: int) -> RowTold:
        return RowTold(self._columns[place].as_py(), self._source[place].as_py())


def told_of(prompts: Iterable[Prompt]) -> pa.Table:
    """A table of what is told of prompts that are in the order of their ids."""
    rows = [*prompts]
    columns: dict[str, Any] = {
        "id": pa.array([each.id for each in rows], pa.int64()),
        "columns": pa.array([each.columns for each in rows], pa.large_string()),
        "source": pa.array([each.source for each in rows], pa.large_string()),
    }
    return pa.table(columns)
