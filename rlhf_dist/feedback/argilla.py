"""Argilla 2: its records, as JSON or as a data set, to rows of judgements and back.

A record has fields by name, and responses by question, each a list of {value, user_id, status}; flattened, as a data set has
it, columns of fields and QUESTION.responses, QUESTION.responses.users, QUESTION.responses.status. Records do not say of what
type a question is; its values tell. Suggestions, vectors and metadata are not read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from rlhf_dist.data.feedback import is_number
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.fields import TIES, Fields, fields_of, mappings, part
from rlhf_dist.feedback.retold import tasks_of
from rlhf_dist.feedback.told import REMARKS, Statement, Told, rows_of
from rlhf_dist.files import shown

SAID = (None, "submitted")
"""States of a response that its annotator stands by: not a draft, or what was discarded or is pending."""
FLAT = ".responses"
OURS = ("id", "status", "inserted_at", "updated_at", "_server_id")
"""Columns of a flattened record that are no fields."""
LONGEST_LABEL = 40
"""Characters of a text that may be a label."""

Response = tuple[str, str, Any]
"""Who, the question, and a value."""


def judgements(records: Sequence[tuple[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """Rows of judgements.

    Args:
        records: each with its place, nested or flattened.
        left_out: gets how much is left out, by reason.

    Raises:
        DataError: a record is not as Argilla exports it; names it.
    """
    read = [(where, *_record(where, record, left_out)) for where, record in records]
    read = [each for each in read if each[2]]
    fields = [fields_of(where, found) for where, found, _ in read]
    labels = _labels(
        [(own, question, value) for own, (*_, said) in zip(fields, read, strict=True) for _, question, value in said]
    )
    told = []
    for number, (own, (where, _, responses)) in enumerate(zip(fields, read, strict=True), start=1):
        for who in dict.fromkeys(name for name, _, _ in responses):
            mine = [(question, value) for name, question, value in responses if name == who]
            said = [each for question, value in mine for each in _said(where, own, question, value, labels)]
            told.append(Told(where, number, own, who, said))
    return rows_of(told, left_out)


def records(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of judgements as records for `rg.Record.from_dict`, one for each task.

    The dataset wants fields prompt (text or chat) and response, response_a and response_b, or response_1 to response_N, and
    questions preference (labels: the fields' names and tie), ranking, score and margin (ratings), comment (text), marks (spans;
    of two answers marks_response_a and marks_response_b); further criteria are ratings or labels, other labels multi-labels.
    Argilla keeps no times, sources and scales, and of people their UUIDs: who has another name gets one made of it. Skips
    and gold questions are left out.
    """
    made = []
    for number, task in enumerate(tasks_of(rows), start=1):
        responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row, said in task.judgements:
            values: dict[str, Any] = {}
            for each in said:
                question = f"marks_{each.about}" if each.kind == "mark" and len(task.answers) > 1 else each.question
                if each.kind == "mark":
                    values.setdefault(question, []).append(_span(each.value))
                else:
                    values[question] = _value(each)
            for question, value in values.items():
                responses[question].append({"value": value, "user_id": _uuid(row), "status": "submitted"})
        made.append(
            {"id": str(number), "fields": {"prompt": task.prompt, **task.answers}, "responses": dict(responses)}
        )
    return made


def _record(where: str, record: Any, left_out: Counter[str]) -> tuple[dict[str, Any], list[Response]]:
    """Fields, and responses that people stand by."""
    flat = isinstance(record, dict) and "fields" not in record and any(name.endswith(FLAT) for name in record)
    fields, responses = (
        _flat(where, record) if flat else (part(where, record, "fields"), part(where, record, "responses"))
    )
    said = []
    for question, given in responses.items():
        for response in mappings(where, question, given):
            value, status = response.get("value"), response.get("status")
            if status not in SAID:
                left_out[f"{status} responses"] += 1
            elif value not in (None, "", []):
                user = response.get("user_id")
                said.append(("" if user in (None, "None") else str(user), question, value))
    return fields, said


def _flat(where: str, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {name: value for name, value in record.items() if "." not in name and name not in OURS}
    responses: dict[str, Any] = {}
    for name in record:
        if name.endswith(FLAT):
            columns = [record.get(each) for each in (name, f"{name}.users", f"{name}.status")]
            wrong = [each for each in columns if each is not None and not isinstance(each, list)]
            if wrong:
                raise DataError(f"{where}: {name} is {shown(wrong[0])}; expected a list")
            made = zip_longest(*(each or [] for each in columns))
            responses[name.removesuffix(FLAT)] = [
                dict(zip(("value", "user_id", "status"), one, strict=True)) for one in made
            ]
    return fields, responses


def _labels(said: Sequence[tuple[Fields, str, Any]]) -> set[str]:
    """Questions whose texts are labels: one names an answer of several, or they are few that come again and again."""
    texts: dict[str, list[str]] = defaultdict(list)
    found = set()
    for fields, question, value in said:
        if isinstance(value, str) and question.lower() not in REMARKS:
            texts[question].append(value)
            if fields.side(value) is not None:
                found.add(question)
    repeated = {question for question, own in texts.items() if len(own) >= 3 * len(set(own))}
    return found | {each for each in repeated if all(len(text) <= LONGEST_LABEL for text in texts[each])}


def _said(where: str, fields: Fields, question: str, value: Any, labels: set[str]) -> list[Statement]:
    """What a value says, by its form."""
    if isinstance(value, bool):
        return [Statement(question, "labels", [str(value).lower()])]
    if is_number(value):
        return [Statement(question, "number", value)]
    if isinstance(value, str):
        return [Statement(question, "labels", [value]) if question in labels else Statement(question, "text", value)]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        several = len(value) > 1 and all(fields.answer(each) is not None for each in value)
        return [
            Statement(question, "ranking", [[each] for each in value])
            if several
            else Statement(question, "labels", value)
        ]
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        if all("start" in each and "end" in each for each in value):
            return [Statement(question, "mark", _mark(where, question, each)) for each in value]
        return [Statement(question, "ranking", _ranked(where, question, value))]
    raise DataError(
        f"{where}: {question} is {shown(value)}; expected text or a number, or a list of labels, ranks or spans"
    )


def _ranked(where: str, question: str, value: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Groups of names, best first; without ranks in the order that they are in."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for place, each in enumerate(value):
        rank, name = each.get("rank", place), each.get("value")
        if not is_number(rank) or not isinstance(name, str):
            raise DataError(f"{where}: {question} has {shown(each)}; expected a name, and a rank that is a number")
        groups[rank].append(name)
    return [groups[rank] for rank in sorted(groups)]


def _mark(where: str, question: str, span: Mapping[str, Any]) -> dict[str, Any]:
    start, end, label = span["start"], span["end"], span.get("label")
    if type(start) is not int or type(end) is not int or not isinstance(label, str | None):
        raise DataError(f"{where}: {question} has {shown(span)}; expected a span with start, end and label")
    return {"text": None, "start": start, "end": end, "comment": None if label == "mark" else label}


def _value(said: Statement) -> Any:
    if said.kind == "ranking":
        return [{"value": name, "rank": rank} for rank, group in enumerate(said.value, start=1) for name in group]
    if said.kind == "labels":
        side = len(said.value) == 1 and (said.value[0] in TIES or said.value[0].startswith("response"))
        return said.value[0] if side else said.value
    return said.value


def _span(mark: Mapping[str, Any]) -> dict[str, Any]:
    return {"label": mark["comment"] or "mark", "start": mark["start"], "end": mark["end"]}


def _uuid(row: Mapping[str, Any]) -> str:
    name = str(row.get("annotator") or "")
    try:
        return str(UUID(name))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, name))
