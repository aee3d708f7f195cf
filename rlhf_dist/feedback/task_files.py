"""Tasks as files: what `feedback sample` writes and `feedback serve` loads, one JSON object per line.

{"kind": "comparison", "prompt": ..., "a": ..., "b": ..., "source_a": ..., "source_b": ..., "gold": "a"}
{"kind": "score" | "comment", "prompt": ..., "a": ..., "source_a": ..., "gold": 4}

A prompt that was a chat has `prompt_source` beside the text that people see, and the judgements have its messages.
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
from rlhf_dist.feedback.assignment import SCORES
from rlhf_dist.feedback.database import PromptSource, Task
from rlhf_dist.files import as_json, shown, write_json_lines

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
    prompt_source: str = ""
    """As JSON, what the prompt was made from: see `records.Prompt.source`."""

    @property
    def digest(self) -> str:
        """The same for the same question."""
        return blake2b(as_json([self.kind, self.prompt, self.a, self.b]).encode(), digest_size=16).hexdigest()


def read_tasks(path: str) -> list[TaskRow]:
    """Tasks of a file.

    Raises:
        DataError: a line is not a task; names file and line.
    """
    return [_task(f"{path}:{number + 1}", row) for number, row in enumerate(read_rows(path))]


def write_tasks(path: Path, rows: Sequence[TaskRow]) -> None:
    """Write a task file in one step."""
    write_json_lines(path, map(asdict, rows))


def read_gold(path: str, *, seed: int) -> list[TaskRow]:
    """Questions whose answer is known, from comparisons with `prompt`, `chosen` and `rejected`; a coin decides the sides.

    Raises:
        DataError: a row lacks one of them; names file and line.
    """
    found = []
    for number, row in enumerate(read_rows(path)):
        right_first = blake2b(f"{seed}/{number}".encode(), digest_size=1).digest()[0] & 1
        a, b = ("chosen", "rejected") if right_first else ("rejected", "chosen")
        sides = {"prompt": row.get("prompt"), "a": row.get(a), "b": row.get(b)}
        for name, text in zip(("prompt", a, b), sides.values(), strict=True):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{path}:{number + 1}: {name} is {text!r}; expected text")
        found.append(_task(f"{path}:{number + 1}", {**sides, "gold": "a" if right_first else "b"}))
    return found


def spread(gold: Sequence[TaskRow], among: Sequence[TaskRow]) -> list[TaskRow]:
    """All rows, the gold questions at equal distances, so that one is met now and then."""
    total = len(gold) + len(among)
    places = {(2 * number + 1) * total // (2 * len(gold)) for number in range(len(gold))}
    golden, others = iter(gold), iter(among)
    return [next(golden) if place in places else next(others) for place in range(total)]


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
                source=PromptSource(columns=row.prompt_source) if row.prompt_source else None,
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
    if kind == "comparison" and row["a"] == row["b"]:
        raise DataError(f"{where}: a and b are the same; expected two different answers")
    gold = row.get("gold")
    gold = int(gold) if isinstance(gold, float) and gold.is_integer() else gold
    allowed = ("a", "b") if kind == "comparison" else tuple(map(str, SCORES)) if kind == "score" else ()
    if gold is not None and str(gold) not in allowed:
        raise DataError(f"{where}: gold is {gold!r}; expected {', '.join(allowed) or 'none'}")
    return TaskRow(
        kind,
        row["prompt"],
        row["a"],
        row["b"] if kind == "comparison" else None,
        str(row.get("source_a") or ""),
        str(row.get("source_b") or ""),
        None if gold is None else str(gold),
        _source(where, row.get("prompt_source")),
    )


def _source(where: str, value: Any) -> str:
    """Columns of feedback, as JSON."""
    if not value:
        return ""
    try:
        columns = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        columns = None
    if not isinstance(columns, dict):
        raise DataError(
            f"{where}: prompt_source is {shown(value)}; expected a JSON object, as `feedback sample` writes it"
        )
    return as_json(columns)
