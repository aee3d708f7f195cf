"""Judgements to and from other tools: TRL's formats, Argilla's and Label Studio's exports."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.assignment import SKIP
from rlhf_dist.feedback.database import Judgement, Task, open_database, transaction
from rlhf_dist.feedback.serve import database_url
from rlhf_dist.feedback.supervision import LABELS
from rlhf_dist.files import as_json, shown, written_aside

FORMS = ("raw", "trl")
MUCH = {"a_much", "b_much"}
UNSAID = ("discarded", "draft")
"""States of a response that its annotator does not stand by."""
SAID = ("selected", "choices", "rating", "number", "text")
"""Where a result of Label Studio has what was said, by its type."""
SIDES = {"left": "a", "right": "b", "a": "a", "b": "b", "chosen": "a", "rejected": "b", "tie": "tie", "both": "tie"}


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


def export_judgements(run_or_file: Path, out: Path, database: str | None = None, *, form: str = "raw") -> int:
    """Write all judgements that stand, gold questions left out, one row each; returns their number.

    Args:
        run_or_file: run folder, or a task file.
        out: a JSONL or Parquet file, by its suffix.
        database: SQLAlchemy's URL; None: SQLite beside the tasks.
        form: as `exported` has it.

    Raises:
        UserError: there are no tasks or no database, or the suffix or the form is none of those.
    """
    with transaction(open_database(database_url(run_or_file, database))) as session:
        rows = exported(session.query(Judgement).order_by(Judgement.id), form=form)
    write_rows(out, rows)
    return len(rows)


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
    """Rows of another tool's export, as `rlhf-dist reward` reads them.

    Args:
        path: the export.
        tool: `argilla` (records as JSON), `label-studio` (JSON).

    Raises:
        DataError: the file is not such an export, or holds no judgement; names the record.
    """
    try:
        records = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(records, list):
        raise DataError(f"{path}: found {type(records).__name__}; expected a list of records")
    readers = {"argilla": _argilla, "label-studio": _label_studio}
    if tool not in readers:
        raise DataError(f"tool is {tool!r}; expected one of {', '.join(readers)}")
    rows = [
        row for number, record in enumerate(records) for row in readers[tool](f"{path}: record {number + 1}", record)
    ]
    if not rows:
        raise DataError(f"{path}: no judgements in {len(records)} records")
    return rows


def _argilla(where: str, record: Any) -> list[dict[str, Any]]:
    """Argilla 2: fields by name; responses by question, each a list of {value, user_id}."""
    fields, responses = _part(where, record, "fields"), _part(where, record, "responses")
    told = [
        (question, response.get("value"), str(response.get("user_id") or ""))
        for question, given in responses.items()
        for response in _mappings(where, question, given)
        if response.get("status") not in UNSAID
    ]
    return _rows(where, fields, told)


def _label_studio(where: str, record: Any) -> list[dict[str, Any]]:
    """Label Studio: data by name; annotations, each with results of type pairwise, choices, rating or textarea."""
    data, told = _part(where, record, "data"), []
    for annotation in _mappings(where, "annotations", record.get("annotations")):
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        name = "" if who is None else str(who)
        for result in _mappings(where, "result", annotation.get("result")):
            (value,) = _mappings(where, "value", [result.get("value") or {}])
            said = next((value[key] for key in SAID if value.get(key) not in (None, [])), None)
            told.append((str(result.get("from_name", "")), said[0] if isinstance(said, list) and said else said, name))
    return _rows(where, data, told)


def _mappings(where: str, name: str, given: Any) -> list[dict[str, Any]]:
    """What a record lists under a name; null is nothing."""
    several = [] if given is None else given
    if not isinstance(several, list) or not all(isinstance(each, dict) for each in several):
        raise DataError(f"{where}: {name} is {shown(given)}; expected a list of mappings")
    return several


class _NoSide(DataError):
    """Text about a pair of answers that names neither: a remark, beside a choice."""


def _rows(where: str, fields: dict[str, Any], told: Sequence[tuple[str, Any, str]]) -> list[dict[str, Any]]:
    """Judgements of one record, from questions, what was said, and by whom; remarks on a pair have no place of their own."""
    rows, remarks = [], []
    for question, value, annotator in told:
        try:
            row = _row(where, fields, value, question, annotator=annotator)
        except _NoSide as error:
            remarks.append(error)
        else:
            rows += [row] if row is not None else []
    if remarks and not rows:
        raise remarks[0]
    return rows


def _row(where: str, fields: dict[str, Any], value: Any, question: str, *, annotator: str) -> dict[str, Any] | None:
    """One judgement: a side, a number, or text, with the fields it is about; None for an empty one."""
    if value in (None, "", []):
        return None
    prompt = _first(where, fields, "prompt", "instruction", "question", "input")
    second = _named(fields, SECOND)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if second is not None:
            raise DataError(f"{where}: {question} is {value}, of two answers; expected a score of one, or a side")
        return {"prompt": prompt, "answer": _answer(where, fields), "score": value, "annotator": annotator}
    text = _best(where, value) if isinstance(value, list) else value
    if not isinstance(text, str):
        raise DataError(f"{where}: {question} is {shown(text)}; expected text or a number")
    side = SIDES.get(_side(str(text)))
    if side is not None and second is not None:
        first = _first(where, fields, *FIRST)
        return {"prompt": prompt, "a": first, "b": second, "preference": side, "annotator": annotator}
    if second is not None:
        raise _NoSide(f"{where}: {question} is {text!r}; expected a side ({', '.join(SIDES)}) or the name of a field")
    return {"prompt": prompt, "answer": _answer(where, fields), "comment": str(text), "annotator": annotator}


def _best(where: str, ranking: Sequence[Any]) -> Any:
    """The first of names, or the one of {value, rank} with the lowest rank; `tie` if two share it."""
    if not all(isinstance(each, dict) for each in ranking):
        return ranking[0]
    wrong = [each for each in ranking if not isinstance(each.get("rank", 0), (int, float))]
    if wrong:
        raise DataError(f"{where}: a ranking has {shown(wrong[0])}; expected a rank that is a number")
    ordered = sorted(ranking, key=lambda each: each.get("rank", 0))
    shared = len(ordered) > 1 and "rank" in ordered[0] and ordered[0]["rank"] == ordered[1].get("rank")
    return "tie" if shared else ordered[0].get("value")


FIRST = ("a", "response_a", "answer1", "answer_a", "response1", "response-1", "chosen", "left")
SECOND = ("b", "response_b", "answer2", "answer_b", "response2", "response-2", "rejected", "right")
ONLY = ("answer", "response", "completion", "output", *FIRST)


def _side(text: str) -> str:
    low = text.strip().lower()
    return "a" if low in FIRST else "b" if low in SECOND else low


def _answer(where: str, fields: dict[str, Any]) -> Any:
    return _first(where, fields, *ONLY)


def _named(fields: dict[str, Any], names: Sequence[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name)), None)


def _first(where: str, fields: dict[str, Any], *names: str) -> Any:
    found = _named(fields, names)
    if found is None:
        raise DataError(f"{where}: fields are {sorted(fields)}; expected one of {', '.join(names)}")
    return found


def _part(where: str, record: Any, name: str) -> dict[str, Any]:
    part = record.get(name) if isinstance(record, dict) else None
    if not isinstance(part, dict):
        raise DataError(f"{where}: no {name!r}; expected a record as the tool exports it")
    return part
