"""Supervised examples as the learner reads them: token ids, and the positions whose output is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

EXAMPLES = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.int32()), nullable=False, metadata={"unit": "token id"}),
        pa.field("selected_from", pa.int32(), nullable=False, metadata={"unit": "position", "meaning": "first wanted"}),
        pa.field("selected_to", pa.int32(), nullable=False, metadata={"unit": "position", "meaning": "end, exclusive"}),
    ],
    metadata={"schema": "rlhf_dist.examples", "version": "1"},
)


def examples(tokens: Sequence[Sequence[int]], selected: Sequence[range]) -> pa.RecordBatch:
    """Examples as one Arrow batch."""
    columns = {
        "tokens": tokens,
        "selected_from": [chosen.start for chosen in selected],
        "selected_to": [chosen.stop for chosen in selected],
    }
    return pa.RecordBatch.from_pydict(columns, schema=EXAMPLES)
