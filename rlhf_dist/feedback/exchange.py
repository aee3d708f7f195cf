"""Judgements to and from other tools: TRL's formats, Argilla's and Label Studio's exports."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload, selectinload

from rlhf_dist.data.tables import SUFFIXES, read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.feedback import argilla, label_studio, marks
from rlhf_dist.feedback.database import Judgement, Rating, Task, open_database, transaction
from rlhf_dist.feedback.serve import database_url
from rlhf_dist.feedback.verdicts import LABELS, LETTERS, MARGINS, SCORES, SKIP, pairs, ranked
from rlhf_dist.files import as_json, check_depth, check_text, written_aside

LOG = logging.getLogger(__name__)

FORMS = ("raw", "trl", "argilla", "label-studio")
TOOLS = {"argilla": argilla.records, "label-studio": label_studio.tasks}


def standing(session: Session) -> Iterator[Judgement]:
    """Judgements that stand, in the order in which they were given, with all that an export needs of each."""
    whole = (
        joinedload(Judgement.task).joinedload(Task.text),
        joinedload(Judgement.annotator),
        selectinload(Judgement.ratings),
    )
    query = select(Judgement).where(Judgement.withdrawn.is_(None)).options(*whole).order_by(Judgement.id)
    yield from session.scalars(query.execution_options(yield_per=1000))


def exported(judgements: Iterable[Judgement], *, form: str) -> list[dict[str, Any]]:
    """Judgements that stand, as rows that `rlhf-dist reward` reads.

    Args:
        judgements: of the store.
        form: `raw`, everything that was said: by whom, when, in which order it was seen, gold questions and skips too; `trl`,
            comparisons with a winner as prompt, chosen, rejected; `argilla` or `label-studio`, records that these tools import.

    Raises:
        DataError: the form is none of them.
    """
    if form not in FORMS:
        raise DataError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    stand = [one for one in judgements if one.withdrawn is None]
    if form in ("raw", *TOOLS):
        rows = [row for one in stand for row in _everything(one)]
        return TOOLS[form](rows) if form in TOOLS else rows
    compared = ("comparison", "ranking")
    judged = [one for one in stand if one.verdict != SKIP and one.task.gold is None and one.task.kind in compared]
    prompts = {one.task_id: _prompt(one.task) for one in judged}
    chats = all(prompt.get("prompt_messages") for prompt in prompts.values())  # else one column would be of two types
    return [row for one in judged for row in _trl(one, prompts[one.task_id], chats=chats)]


def _everything(one: Judgement) -> Iterator[dict[str, Any]]:
    """A row of the verdict, and one of each further question."""
    task, answers, sources = one.task, json.loads(one.task.text.answers), json.loads(one.task.sources)
    shared = {
        "judgement": one.id,
        "task": task.id,
        "annotator": one.annotator.name,
        "created": one.created.isoformat(timespec="seconds") + "Z",
        "seconds": None if one.active is None else round(one.active, 1),
        "gold": task.gold,
        **_prompt(task),
    }
    said = {"comment": one.comment or None, "marks": _marks(one)}
    order = [int(place) for place in one.order_shown]
    yield from ({**row, **shared, **said} for row in _verdict_rows(one, answers, sources, order))
    for rating in one.ratings:
        yield {**_rating_row(rating, answers, sources), **shared}


def _verdict_rows(one: Judgement, answers: list[str], sources: list[str], order: list[int]) -> Iterator[dict[str, Any]]:
    kind, pair = one.task.kind, dict(zip(("a", "b"), answers, strict=False))
    if one.verdict == SKIP:
        yield {"kind": "skips", "answers": answers, "sources": sources}
    elif kind == "comparison":
        origin = dict(zip(("source_a", "source_b"), sources, strict=True))
        told = {"preference": LABELS[one.verdict], "verdict": one.verdict, "margin": MARGINS.get(one.verdict, 0.0)}
        yield {"kind": "comparisons", **pair, **told, **origin, "shown_first": "ab"[order[0]] if order else None}
    elif kind == "ranking" and "=" in one.verdict:
        # Equal ones have no place in a list from best to worst.
        for first, second, label in pairs(kind, one.verdict):
            sides = {"a": answers[first], "b": answers[second], "preference": label, "verdict": one.verdict}
            yield {"kind": "comparisons", **sides, "source_a": sources[first], "source_b": sources[second]}
    elif kind == "ranking":
        best_first = [place for (place,) in ranked(one.verdict)]
        told = {"answers": [answers[each] for each in best_first], "sources": [sources[each] for each in best_first]}
        yield {"kind": "rankings", **told, "shown": [best_first.index(each) for each in order]}
    elif kind == "score":
        scale = [min(SCORES), max(SCORES)]
        yield {"kind": "scores", "answer": answers[0], "score": int(one.verdict), "scale": scale, "source": sources[0]}
    else:
        yield {"kind": "comments", "answer": answers[0], "source": sources[0]}


def _rating_row(rating: Rating, answers: list[str], sources: list[str]) -> dict[str, Any]:
    named = {"criterion": rating.criterion}
    if rating.kind == "comparison":
        both = {"a": answers[0], "b": answers[1], "source_a": sources[0], "source_b": sources[1]}
        return {"kind": "comparisons", **both, "preference": LABELS[rating.value], "verdict": rating.value, **named}
    about: dict[str, Any] = {"answers": answers}
    if rating.place is not None:
        about = {"answer": answers[rating.place], "source": sources[rating.place]}
    if rating.kind == "choice" or rating.place is None:
        return {"kind": "choices", **about, "choice": rating.value, **named}
    return {"kind": "scores", **about, "score": float(rating.value), "scale": [rating.low, rating.high], **named}


def _marks(one: Judgement) -> list[dict[str, Any]] | None:
    found = marks.from_text(one.marks)
    told = [{"answer": LETTERS[each.place], **vars(each)} for each in found]
    return [{name: value for name, value in each.items() if name != "place"} for each in told] or None


def _trl(one: Judgement, prompt: dict[str, Any], *, chats: bool) -> Iterator[dict[str, Any]]:
    """Each pair with a winner; of chats in TRL's conversational form, besides which our own columns keep all of a message."""
    answers = json.loads(one.task.text.answers)
    for first, second, label in pairs(one.task.kind, one.verdict):
        if label == 0.5:
            continue
        chosen, rejected = (first, second) if label == 1 else (second, first)
        row = {**prompt, "chosen": answers[chosen], "rejected": answers[rejected]}
        if chats:
            row["prompt"] = [
                {name: each.get(name) for name in ("role", "content")} for each in prompt["prompt_messages"]
            ]
            row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        yield {**row, "margin": MARGINS.get(one.verdict, 0.0), "annotator": one.annotator.name}


def _prompt(task: Task) -> dict[str, Any]:
    """The prompt as people saw it, and beside it columns from which its tokens are those that the policy saw."""
    columns: dict[str, Any] = json.loads(task.text.columns) if task.text.columns else {}
    return {"prompt": json.loads(task.text.prompt), **columns}


def export_judgements(run_or_file: Path, out: Path, database: str | None = None, *, form: str = "raw") -> int:
    """Write all judgements that stand; returns the number of rows.

    Args:
        run_or_file: run folder, or a task file.
        out: a JSONL or Parquet file, by its suffix.
        database: SQLAlchemy's URL; None: SQLite beside the tasks.
        form: as `exported` has it.

    Raises:
        UserError: there are no tasks or no database, or the suffix or the form is none of those.
    """
    with transaction(open_database(database_url(run_or_file, database)), reads=True) as session:
        rows = exported(standing(session), form=form)
    write_rows(out, rows)
    return len(rows)


def encoded(rows: Sequence[dict[str, Any]], suffix: str) -> bytes:
    """Rows as the bytes of a `json`, `jsonl` or `parquet` file; in Parquet lacking columns are null, nested values JSON text."""
    if suffix == "json":
        return as_json(list(rows), ensure_ascii=False, indent=1).encode()
    if suffix == "jsonl":
        return "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _column(values: Sequence[Any]) -> list[Any]:
    """A column for Parquet: lists of plain messages as they are, all other nesting as JSON text.

    Arrow would give all messages and tools the fields of each other, as nulls, which templates render.
    """
    plain = all(value is None or _is_chat(value) for value in values)
    return [as_json(value) if isinstance(value, (list, dict)) and not plain else value for value in values]


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages that have a role and text, and nothing else."""
    return isinstance(value, list) and all(
        isinstance(each, dict) and each.keys() == {"role", "content"} and isinstance(each["content"], str)
        for each in value
    )


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a JSON, JSONL or Parquet file, by its suffix, in one step.

    Raises:
        DataError: the suffix is neither.
    """
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("json", "jsonl", "parquet"):
        raise DataError(
            f"{path}: unknown kind of file {path.suffix!r}; expected .jsonl or .parquet, or .json for other tools"
        )
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
