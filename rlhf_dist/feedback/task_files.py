"""Tasks as files: what `feedback sample` writes and `feedback serve` loads, one JSON object per line.

{"kind": "comparison", "prompt": ..., "a": ..., "b": ..., "source_a": ..., "source_b": ..., "gold": "a"}
{"kind": "ranking", "prompt": ..., "answers": [..., ..., ...], "sources": [...], "gold": "b>a>c"}
{"kind": "score" | "comment", "prompt": ..., "a": ..., "source_a": ..., "gold": 4}

A prompt is text, or a list of chat messages; of a chat that a policy was given, `prompt_source` has what its tokens are made of.
`criteria` are a task's own further questions, see `criteria`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from rlhf_dist.data.characters import alike
from rlhf_dist.data.conversations import spoken_text, turns
from rlhf_dist.data.demonstrations import completion_text
from rlhf_dist.data.tables import read_rows
from rlhf_dist.data.templates import column
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.criteria import as_text, checked_criteria
from rlhf_dist.feedback.database import Task, TaskText
from rlhf_dist.feedback.orders import place_of
from rlhf_dist.feedback.verdicts import LETTERS, checked_gold
from rlhf_dist.files import as_json, shown, write_json_lines

KINDS = ("comparison", "ranking", "score", "comment")
NO_TEXT = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can spell and nothing can store."""


@dataclass(frozen=True)
class TaskRow:
    """One line of a task file."""

    kind: str
    prompt: str
    a: str = ""
    b: str | None = None
    source_a: str = ""
    source_b: str = ""
    gold: str | None = None
    prompt_source: str = ""
    """As JSON, what the prompt was made from: see `records.Prompt.source`."""
    answers: tuple[str, ...] = ()
    """Of a ranking, instead of `a` and `b`."""
    sources: tuple[str, ...] = ()
    criteria: str = ""
    """As JSON."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All answers."""
        return self.answers or ((self.a,) if self.b is None else (self.a, self.b))

    @property
    def origins(self) -> tuple[str, ...]:
        """Who gave each."""
        given = self.sources if self.answers else (self.source_a, self.source_b)
        return (*given, *[""] * len(self.texts))[: len(self.texts)]

    @property
    def digest(self) -> str:
        """The same for the same question."""
        asked = [self.kind, self.prompt, *(self.answers or (self.a, self.b))]
        return blake2b(as_json(asked).encode(), digest_size=16).hexdigest()


def read_tasks(path: str) -> list[TaskRow]:
    """Tasks of a file.

    Raises:
        DataError: a line is not a task; names file and line.
    """
    return [_task(f"{path}:{number + 1}", row) for number, row in enumerate(read_rows(path))]


def write_tasks(path: Path, rows: Sequence[TaskRow]) -> None:
    """Write a task file in one step."""
    write_json_lines(path, ({name: value for name, value in asdict(row).items() if value} for row in rows))


def read_gold(path: str, *, seed: int) -> list[TaskRow]:
    """Questions whose answer is known, from comparisons with `prompt`, `chosen` and `rejected`; a coin decides the sides.

    Raises:
        DataError: a row lacks one of them; names file and line.
    """
    found = []
    for number, row in enumerate(read_rows(path)):
        right_first = blake2b(f"{seed}/{number}".encode(), digest_size=1).digest()[0] & 1
        a, b = ("chosen", "rejected") if right_first else ("rejected", "chosen")
        sides = {name: _text(f"{path}:{number + 1}", key, row.get(key)) for name, key in (("a", a), ("b", b))}
        gold = {**sides, "prompt": row.get("prompt"), "gold": "a" if right_first else "b"}
        found.append(_task(f"{path}:{number + 1}", gold))
    return found


def spread(gold: Sequence[TaskRow], among: Sequence[TaskRow]) -> list[TaskRow]:
    """All rows, the gold questions at equal distances, so that one is met now and then."""
    total = len(gold) + len(among)
    places = {(2 * number + 1) * total // (2 * len(gold)) for number in range(len(gold))}
    golden, others = iter(gold), iter(among)
    return [next(golden) if place in places else next(others) for place in range(total)]


@dataclass(frozen=True)
class LoadedTasks:
    """What became of a task file."""

    new: int
    gold_changed: int
    needed_changed: int
    questions_changed: int
    """Tasks that have other further questions of their own."""
    absent: int
    """Tasks that the store has and the file has not; they stay."""


def load_tasks(session: Session, rows: Sequence[TaskRow], *, overlap: int | None) -> LoadedTasks:
    """Put tasks that the store does not have yet into it, and bring those that it has up to date.

    Args:
        session: an open transaction; the caller commits it.
        rows: the tasks.
        overlap: judgements wanted of each; None: as it was, 1 in a new store.
    """
    known = {each.digest: each for each in session.scalars(select(Task))}
    wanted = overlap or next((each.needed for each in known.values()), 1)
    given = {row.digest: row for row in rows}
    for digest, row in given.items():
        if digest not in known:
            session.add(_made(row, wanted))
    both = [(known[digest], row) for digest, row in given.items() if digest in known]
    gold = [_update(task, "gold", row.gold) for task, row in both]
    for task, row in both:
        task.sources = as_json(row.origins)
    questions = _update_texts(session, {task.id: row for task, row in both})
    needed = [_update(task, "needed", wanted) for task in known.values()]
    if given.keys() - known.keys() and session.get_bind().dialect.name == "postgresql":
        session.flush()
        # Else it plans for an empty table until it looks by itself, a minute later.
        session.execute(sql("ANALYZE tasks"))
    return LoadedTasks(
        len(given.keys() - known.keys()), sum(gold), sum(needed), questions, len(known.keys() - given.keys())
    )


def _update(task: Task, name: str, value: Any) -> bool:
    if getattr(task, name) == value:
        return False
    setattr(task, name, value)
    return True


def _update_texts(session: Session, rows: Mapping[int, TaskRow]) -> int:
    """Bring what known tasks ask beside their question, and what their prompts are made of, up to date; texts are not read."""
    kept = session.execute(select(TaskText.task_id, TaskText.criteria, TaskText.columns)).all()
    asked = 0
    for number, criteria, columns in kept:
        row = rows.get(number)
        if row is not None and (criteria, columns) != (row.criteria, row.prompt_source):
            asked += criteria != row.criteria
            told = {"criteria": row.criteria, "columns": row.prompt_source}
            session.execute(update(TaskText).where(TaskText.task_id == number).values(told))
    return asked


def _made(row: TaskRow, needed: int) -> Task:
    text = TaskText(
        prompt=as_json(row.prompt), answers=as_json(row.texts), columns=row.prompt_source, criteria=row.criteria
    )
    return Task(
        digest=row.digest,
        kind=row.kind,
        place=place_of(row.digest),
        sources=as_json(row.origins),
        lengths=as_json([len(each) for each in row.texts]),
        gold=row.gold,
        needed=needed,
        text=text,
    )


def _task(where: str, row: dict[str, Any]) -> TaskRow:
    kind = row.get("kind") or "comparison"
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {shown(kind)}; expected one of {', '.join(KINDS)}")
    prompt, source = _prompt(where, row)
    names = {"comparison": ("a", "b"), "ranking": ()}.get(kind, ("a",))
    answers = tuple(_text(where, name, row.get(name)) for name in names)
    several = _several(where, row) if kind == "ranking" else ()
    _check_differ(where, answers or several)
    criteria = checked_criteria(f"{where}: criteria", column(where, row, "criteria", list) or [])
    gold = checked_gold(where, kind, row.get("gold"), len(answers or several))
    shared: dict[str, Any] = {"gold": gold, "prompt_source": source, "criteria": as_text(criteria)}
    if several:
        sources = tuple(str(each or "") for each in row.get("sources") or ())
        return TaskRow(kind, prompt, answers=several, sources=sources, **shared)
    first, second = (*answers, None)[:2]
    origins = [str(row.get(name) or "") for name in ("source_a", "source_b")]
    return TaskRow(kind, prompt, first or "", second, origins[0], origins[1] if second else "", **shared)


def _prompt(where: str, row: dict[str, Any]) -> tuple[str, str]:
    """What people read of a prompt, and the columns that a chat is made of."""
    source = _source(where, row.get("prompt_source"))
    asked = row.get("prompt")
    if isinstance(asked, list):
        if not asked or not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in asked):
            raise DataError(f"{where}: prompt is {shown(asked)}; expected text, or messages with `role` and `content`")
        columns = {"prompt_messages": asked, **(json.loads(source) if source else {})}
        return _text(where, "prompt", spoken_text(turns(columns))), as_json(columns)
    return _text(where, "prompt", asked), source


def _text(where: str, name: str, value: object) -> str:
    if isinstance(value, list):
        value = completion_text(f"{where}: {name}", value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {shown(value)}; expected text")
    if found := NO_TEXT.search(value):
        raise DataError(f"{where}: {name} has half a character, {found[0]!r} at {found.start()}; expected whole ones")
    return value


def _several(where: str, row: dict[str, Any]) -> tuple[str, ...]:
    answers = row.get("answers")
    if not isinstance(answers, list) or not 2 <= len(answers) <= len(LETTERS):
        raise DataError(f"{where}: answers is {shown(answers)}; expected a list of 2 to {len(LETTERS)} texts")
    return tuple(_text(where, f"answers[{number}]", each) for number, each in enumerate(answers))


def _check_differ(where: str, answers: Sequence[str]) -> None:
    if any(alike(*pair) for pair in combinations(answers, 2)):
        raise DataError(f"{where}: two answers look the same, but for white space at most; expected different ones")


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
