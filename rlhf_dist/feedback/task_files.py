"""Tasks as files: what `feedback sample` writes and `feedback serve` loads, one JSON object per line.

{"kind": "comparison", "prompt": ..., "a": ..., "b": ..., "source_a": ..., "source_b": ..., "gold": "a"}
{"kind": "score" | "comment", "prompt": ..., "a": ..., "source_a": ..., "gold": 4}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.database import Task
from rlhf_dist.feedback.judge import SCORES

KINDS = ("comparison", "score", "comment")


@dataclass(frozen=True)
class TaskRow:
    """One line of a task file."""

    kind: str
    prompt: str
    a: str
    b: str | None = None
    source_a: str = ""
    source_b: str = ""
    gold: str | None = None

    @property
    def digest(self) -> str:
        """The same for the same question."""
        return blake2b(json.dumps([self.kind, self.prompt, self.a, self.b]).encode(), digest_size=16).hexdigest()


def read_tasks(path: str) -> list[TaskRow]:
    """Tasks of a file.

    Raises:
        DataError: a line is not a task; names file and line.
    """
    return [_task(f"{path}:{number + 1}", row) for number, row in enumerate(read_rows(path))]


def write_tasks(path: Path, rows: Sequence[TaskRow]) -> None:
    """Write a task file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    aside.replace(path)


def load_tasks(session: Session, rows: Sequence[TaskRow], *, overlap: int) -> int:
    """Put tasks that the database does not have yet into it; returns their number.

    Args:
        session: an open transaction; the caller commits it.
        rows: the tasks.
        overlap: judgements wanted of each.
    """
    known = set(session.scalars(select(Task.digest)))
    new = {row.digest: row for row in rows if row.digest not in known}
    for digest, row in new.items():
        session.add(
            Task(
                digest=digest,
                kind=row.kind,
                prompt=row.prompt,
                answer_a=row.a,
                answer_b=row.b,
                source_a=row.source_a,
                source_b=row.source_b,
                gold=row.gold,
                needed=overlap,
            )
        )
    return len(new)


def _task(where: str, row: dict[str, Any]) -> TaskRow:
    kind = row.get("kind", "comparison")
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    texts = ("prompt", "a", "b") if kind == "comparison" else ("prompt", "a")
    for name in texts:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(f"{where}: {name} is {row.get(name)!r}; expected text")
    gold = row.get("gold")
    allowed = ("a", "b") if kind == "comparison" else tuple(map(str, SCORES)) if kind == "score" else ()
    if gold is not None and str(gold) not in allowed:
        raise DataError(f"{where}: gold is {gold!r}; expected {', '.join(allowed) or 'none'}")
    return TaskRow(
        kind,
        row["prompt"],
        row["a"],
        row.get("b"),
        str(row.get("source_a", "")),
        str(row.get("source_b", "")),
        None if gold is None else str(gold),
    )
