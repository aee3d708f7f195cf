"""Label Studio: its tasks, as JSON or JSON-MIN, to rows of judgements and back.

A task has data by name and annotations, each with results of {type, from_name, to_name, value}, where `value` has what was said
under the name of its type. JSON-MIN has data and results side by side, without types. Predictions and drafts are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_dist.data.feedback import is_number
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.fields import Fields, fields_of, mappings, part
from rlhf_dist.feedback.retold import ToolTask, tasks_of
from rlhf_dist.feedback.told import REMARKS, Statement, Told, rows_of
from rlhf_dist.files import shown

OURS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""What JSON-MIN has beside data and results."""


def judgements(records: Sequence[tuple[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """Rows of judgements.

    Args:
        records: each with its place.
        left_out: gets how much is left out, by reason.

    Raises:
        DataError: a record is not as Label Studio exports it; names it.
    """
    told: list[Told] = []
    numbers: dict[str, int] = {}
    for where, record in records:
        least = isinstance(record, dict) and "data" not in record and "annotator" in record
        # JSON-MIN has a record for each annotation, so that a task comes several times.
        task = numbers.setdefault(repr(record.get("id", where)) if least else where, len(numbers) + 1)
        told += (_least if least else _task)(where, task, record, left_out)
    return rows_of(told, left_out)


def tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of judgements as annotated tasks, to be imported where people are known by their e-mail addresses.

    The interface wants Choices `preference` (response_a, response_b, tie), a Ranker `ranking` of the List `items`, Numbers
    `score` and `margin`, a TextArea `comment` and Labels `marks`; further criteria are under their names. Objects are named
    prompt (Text, or Paragraphs for chats) and response, or response_a and response_b. Skips and gold questions are left out.
    """
    return [
        {"data": _data(task), "annotations": [_annotation(task, *each) for each in task.judgements]}
        for task in tasks_of(rows)
    ]


def _task(where: str, number: int, record: Any, left_out: Counter[str]) -> list[Told]:
    data = part(where, record, "data")
    told = []
    for annotation in mappings(where, "annotations", record.get("annotations")):
        results = mappings(where, "result", annotation.get("result"))
        if annotation.get("was_cancelled"):
            left_out["skipped tasks"] += 1
        elif results:
            fields = fields_of(where, data)
            said = _results(where, fields, results, left_out)
            seconds, created = _number(annotation.get("lead_time")), annotation.get("created_at")
            created = created if isinstance(created, str) else None
            told.append(Told(where, number, fields, _who(annotation.get("completed_by")), said, created, seconds))
    return told


def _least(where: str, task: int, record: Mapping[str, Any], left_out: Counter[str]) -> list[Told]:
    """One annotation of JSON-MIN: lists of values are results; a text under no field's name may be a choice, a text or data."""
    found = {name: value for name, value in record.items() if name not in OURS}
    values = {
        name: [value] if isinstance(value, dict) else value
        for name, value in found.items()
        if _is_value(value) or (isinstance(value, list) and value and all(map(_is_value, value)))
    }
    fields = fields_of(where, {name: value for name, value in found.items() if name not in values})
    results = [{"from_name": name, "value": each} for name, several in values.items() for each in several]
    said = _results(where, fields, results, left_out)
    for name, value in fields.others.items():
        if not isinstance(value, str) or not value:
            continue
        if fields.side(value) is not None:
            said.append(Statement(name, "labels", [value]))
        elif name.lower() in REMARKS:
            said.append(Statement(name, "text", value))
        else:
            left_out[f"texts of {name}, which JSON-MIN does not tell from data (the export JSON does)"] += 1
    created = record.get("created_at")
    when = created if isinstance(created, str) else None
    return [Told(where, task, fields, _who(record.get("annotator")), said, when, _number(record.get("lead_time")))]


def _is_value(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in READERS) and "id" not in value


def _results(
    where: str, fields: Fields, results: Sequence[Mapping[str, Any]], left_out: Counter[str]
) -> list[Statement]:
    """What an annotation's results say.

    A control of Label Studio is tied to one object, whatever it asks; where several are tied to different answers, each asks
    about its own.
    """
    said: list[Statement] = []
    marks: dict[str, dict[str, Any]] = {}
    for result in results:
        (value,) = mappings(where, "value", [result.get("value") or {}])
        key = next((key for key in READERS if value.get(key) not in (None, [], {}, "")), None)
        question, region = str(result.get("from_name") or ""), str(result.get("id"))
        if key is None:
            kind = result.get("type")
            left_out[f"results of the type {shown(kind)[1:-1]}"] += bool(value) or kind == "relation"
        elif key == "labels":
            marks[region] = mark = _mark(where, value)
            said.append(Statement(question, "mark", mark, _marked(fields, result, mark)))
        elif "start" not in value:
            aim = str(result.get("to_name") or "")
            said += [replace(each, about=each.about or aim) for each in READERS[key](where, question, value[key])]
        elif key == "text" and region in marks:
            marks[region]["comment"] = _texts(where, question, value[key])[0].value
        else:
            left_out[f"answers to {question} about a part of a text"] += 1
    aims = {(each.kind, each.about) for each in said if each.about in fields.answers}
    apart = {kind for kind, count in Counter(kind for kind, _ in aims).items() if count > 1} | {"mark"}
    return [
        replace(each, about=each.about if (each.kind, each.about) in aims and each.kind in apart else None)
        for each in said
    ]


def _marked(fields: Fields, result: Mapping[str, Any], mark: Mapping[str, Any]) -> str | None:
    """The answer that a mark is on: the object's, or the only one with that text in that place."""
    if result.get("to_name") in fields.names:
        return str(result["to_name"])
    found = [name for name, text in fields.answers.items() if text[mark["start"] : mark["end"]] == mark["text"]]
    return found[0] if len(found) == 1 else None


def _mark(where: str, value: Mapping[str, Any]) -> dict[str, Any]:
    start, end, text = (value.get(name) for name in ("start", "end", "text"))
    labels = _strings(where, "labels", value["labels"])
    if type(start) is not int or type(end) is not int or not isinstance(text, str | None):
        raise DataError(f"{where}: labels has {shown(value)}; expected start, end and text of a mark")
    return {"text": text, "start": start, "end": end, "comment": None if labels == ["mark"] else ", ".join(labels)}


def _strings(where: str, question: str, value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in several):
        raise DataError(f"{where}: {question} is {shown(value)}; expected text, or a list of texts")
    return several


def _labels(where: str, question: str, value: Any) -> list[Statement]:
    return [Statement(question, "labels", _strings(where, question, value))]


def _texts(where: str, question: str, value: Any) -> list[Statement]:
    return [Statement(question, "text", "\n".join(_strings(where, question, value)))]


def _numbers(where: str, question: str, value: Any) -> list[Statement]:
    if not is_number(value):
        raise DataError(f"{where}: {question} is {shown(value)}; expected a number")
    return [Statement(question, "number", value)]


def _taxonomy(where: str, question: str, value: Any) -> list[Statement]:
    paths = value if isinstance(value, list) else [value]
    return [Statement(question, "labels", [" > ".join(_strings(where, question, path)) for path in paths])]


def _ranker(where: str, question: str, value: Any) -> list[Statement]:
    """One bucket is an order, buckets with numbers are groups, best first, and others labels of the items in them."""
    buckets = value if isinstance(value, dict) else {question: value}
    items = {name: _strings(where, question, each) for name, each in buckets.items() if name != "_" and each}
    numbers = {name: re.search(r"\d{1,9}$", name) for name in items}
    if len(items) == 1:
        return [Statement(question, "ranking", [[name] for name in next(iter(items.values()))])]
    if items and all(numbers.values()):
        ordered = sorted(items, key=lambda name: int(found[0]) if (found := numbers[name]) else 0)
        return [Statement(question, "ranking", [items[name] for name in ordered])]
    return [Statement(question, "labels", [bucket], name) for bucket, names in items.items() for name in names]


READERS: dict[str, Callable[[str, str, Any], list[Statement]]] = {
    "labels": _labels,
    "selected": _labels,
    "choices": _labels,
    "rating": _numbers,
    "number": _numbers,
    "taxonomy": _taxonomy,
    "ranker": _ranker,
    "text": _texts,
}
"""How what was said is read, by where a result has it; what is said of a part has that part's `text`, too, so that is last."""


def _who(who: Any) -> str:
    who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
    return "" if who is None else str(who)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _data(task: ToolTask) -> dict[str, Any]:
    items = [{"id": name, "title": name, "body": text} for name, text in task.answers.items()]
    sources = {"sources": list(task.sources)} if any(task.sources) else {}
    scales = {"scales": dict(task.scales)} if task.scales else {}
    answers = {"items": items} if len(items) > 2 else dict(task.answers)
    return {"prompt": task.prompt, **answers, **sources, **scales, **task.others}


def _annotation(task: ToolTask, row: Mapping[str, Any], said: Sequence[Statement]) -> dict[str, Any]:
    who = {"completed_by": {"email": row["annotator"]}} if row.get("annotator") else {}
    told = {"created_at": row.get("created"), "lead_time": row.get("seconds"), "was_cancelled": False}
    return {**who, **told, "result": [_result(task, number, each) for number, each in enumerate(said)]}


def _result(task: ToolTask, number: int, said: Statement) -> dict[str, Any]:
    kind, value = _value(said)
    aim = said.about or ("items" if len(task.answers) > 2 else next(iter(task.answers)))
    return {"id": str(number), "from_name": said.question, "to_name": aim, "type": kind, "value": value}


def _value(said: Statement) -> tuple[str, dict[str, Any]]:
    if said.kind == "mark":
        place = {name: said.value[name] for name in ("start", "end", "text")}
        return "labels", {**place, "labels": [said.value["comment"] or "mark"]}
    if said.kind == "ranking":
        return "ranker", {"ranker": {said.question: [name for group in said.value for name in group]}}
    if said.kind == "text":
        return "textarea", {"text": [said.value]}
    return ("choices", {"choices": said.value}) if said.kind == "labels" else ("number", {"number": said.value})
