"""Judgements to and from other tools: TRL's formats, Argilla's and Label Studio's exports."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf_dist.data.tables import SUFFIXES, read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.feedback import argilla, label_studio
from rlhf_dist.feedback.assignment import SKIP
from rlhf_dist.feedback.database import Judgement, Task
from rlhf_dist.feedback.supervision import LABELS
from rlhf_dist.files import as_json, check_depth, check_text, written_aside

LOG = logging.getLogger(__name__)
FORMS = ("raw", "trl")
MUCH = {"a_much", "b_much"}


def exported(judgements: Iterable[Judgement], *, form: str) -> list[dict[str, Any]]:
    """Judgements that stand, as rows that `rlhf-dist reward` reads.

    Args:
        judgements: of the database.
        form: `raw`, everything that was said, by annotator; `trl`, comparisons with a winner as prompt, chosen, rejected.

    Raises:
        DataError: the form is neither.
    """
    if form not in FORMS:
        raise DataError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    standing = [one for one in judgements if one.withdrawn is None and one.verdict != SKIP and one.task.gold is None]
    if form == "trl":
        return [_trl(one) for one in standing if one.task.kind == "comparison" and LABELS[one.verdict] != 0.5]
    return [_raw(one) for one in standing]


def _raw(one: Judgement) -> dict[str, Any]:
    task = one.task
    shared = {"annotator": one.annotator.name, "comment": one.comment or None, "seconds": round(one.seconds, 1)}
    shared |= _source(task)
    if task.kind == "comparison":
        told = {"a": task.answer_a, "b": task.answer_b, "preference": LABELS[one.verdict], "verdict": one.verdict}
        sources = {"source_a": task.source_a, "source_b": task.source_b}
        return {"kind": "comparisons", "prompt": task.prompt, **told, **sources, **shared}
    row = {"kind": f"{task.kind}s", "prompt": task.prompt, "answer": task.answer_a, "source": task.source_a, **shared}
    return row | ({"score": int(one.verdict)} if task.kind == "score" else {})


def _trl(one: Judgement) -> dict[str, Any]:
    chosen, rejected = one.task.answer_a, one.task.answer_b or ""
    if LABELS[one.verdict] == 0.0:
        chosen, rejected = rejected, chosen
    margin = 1.0 if one.verdict in MUCH else 0.0
    shared = {"margin": margin, "annotator": one.annotator.name, **_source(one.task)}
    return {"prompt": one.task.prompt, "chosen": chosen, "rejected": rejected, **shared}


def _source(task: Task) -> dict[str, Any]:
    """Columns from which the prompt's tokens are those that the policy saw; the text is what people saw."""
    columns: dict[str, Any] = {} if task.source is None else json.loads(task.source.columns)
    return columns


def encoded(rows: Sequence[dict[str, Any]], suffix: str) -> bytes:
    """Rows as the bytes of a `jsonl` or `parquet` file; in Parquet lacking columns are null, and nested values JSON text."""
    if suffix == "jsonl":
        return "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [_flat(row.get(name)) for row in rows] for name in names})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _flat(value: Any) -> Any:
    """Arrow would give all messages and tools the fields of each other, as nulls, which templates render."""
    return as_json(value) if isinstance(value, (list, dict)) else value


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a JSONL or Parquet file, by its suffix, in one step.

    Raises:
        DataError: the suffix is neither.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("jsonl", "parquet"):
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected .jsonl or .parquet")
    with written_aside(path) as aside:
        aside.write_bytes(encoded(rows, suffix))


def imported(path: Path, tool: str) -> list[dict[str, Any]]:
    """Rows of another tool's export, as `rlhf-dist reward` reads them; what is left out is told in the log.

    Args:
        path: the export.
        tool: `argilla` (records as JSON, or a data set of them as files), `label-studio` (JSON or JSON-MIN).

    Raises:
        DataError: the file is not such an export, or holds no judgement; names the record.
    """
    readers = {"argilla": argilla.judgements, "label-studio": label_studio.judgements}
    if tool not in readers:
        raise DataError(f"tool is {tool!r}; expected one of {', '.join(readers)}")
    records = _records(path)
    left_out: Counter[str] = Counter()
    rows = readers[tool](records, left_out)
    told = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    if not rows:
        raise DataError(f"{path}: no judgements in {len(records)} records{told and f'; left out: {told}'}")
    if told:
        LOG.warning("%s: left out: %s", path, told)
    return rows


def _records(path: Path) -> list[tuple[str, Any]]:
    """Each with its place."""
    if path.suffix in SUFFIXES or path.is_dir():
        return [(f"{path}: record {number}", row) for number, row in enumerate(read_rows(str(path)), start=1)]
    try:
        records = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(records, list):
        raise DataError(f"{path}: found {type(records).__name__}; expected a list of records")
    placed = [(f"{path}: record {number}", record) for number, record in enumerate(records, start=1)]
    for where, record in placed:
        check_depth(record, where)
        check_text(record, where)
    return placed
