"""Rows of judgements as tasks, each with what people said of it, for other tools: the way back of `told`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_dist.feedback.told import CARRIED, Statement

Row = Mapping[str, Any]
SIDES = {1.0: "response_a", 0.0: "response_b"}


@dataclass(frozen=True)
class ToolTask:
    """What was judged, once, whoever judged it."""

    prompt: Any
    answers: Mapping[str, str]
    """`response`; `response_a` and `response_b`; or `response_1` to `response_N`, by text."""
    sources: Sequence[str]
    scales: Mapping[str, Any]
    """Of scores, by question."""
    others: Mapping[str, Any]
    """What its prompt's tokens depend on."""
    judgements: Sequence[tuple[Row, Sequence[Statement]]]
    """Each with a row that says who and when."""


def tasks_of(rows: Iterable[Row]) -> list[ToolTask]:
    """Tasks in the order of their first rows; skips and gold questions are left out."""
    by_task: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] != "skips" and row.get("gold") is None:
            by_task[row.get("task"), repr(row["prompt"]), tuple(sorted(_texts(row)))].append(row)
    return [_task(each) for each in by_task.values()]


def _texts(row: Row) -> list[str]:
    if row.get("answers"):
        return list(row["answers"])
    return [row["answer"]] if "answer" in row else [row["a"], row["b"]]


def _sources(row: Row) -> list[str]:
    if row.get("sources"):
        return list(row["sources"])
    return [str(row.get(name) or "") for name in (("source",) if "answer" in row else ("source_a", "source_b"))]


def _task(rows: Sequence[Row]) -> ToolTask:
    told = [row for row in rows if row["kind"] != "choices"] or rows  # a label has no sources
    shown = [*zip(_texts(told[0]), _sources(told[0]), strict=False)] or [(text, "") for text in _texts(told[0])]
    if len(shown) > 2:
        shown.sort()  # a ranking would tell its order
    letters = ["response"] if len(shown) == 1 else ["response_a", "response_b"]
    names = letters if len(shown) < 3 else [f"response_{number}" for number in range(1, len(shown) + 1)]
    answers = {name: text for name, (text, _) in zip(names, shown, strict=True)}
    by_judgement: dict[Any, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_judgement[row["judgement"] if row.get("judgement") is not None else (number,)].append(row)
    scales = {row.get("criterion") or "score": row["scale"] for row in rows if row.get("scale")}
    others = {name: rows[0][name] for name in CARRIED if rows[0].get(name)}
    judgements = [(each[0], _said(each, answers)) for each in by_judgement.values()]
    return ToolTask(rows[0]["prompt"], answers, [source for _, source in shown], scales, others, judgements)


def _said(rows: Sequence[Row], answers: Mapping[str, str]) -> list[Statement]:
    """All that one judgement says."""
    said = [each for row in rows for each in _answer(row, answers)]
    if rows[0].get("comment"):
        said.append(Statement("comment", "text", rows[0]["comment"]))
    names = [*answers]
    for mark in rows[0].get("marks") or []:
        name = names["abcdefghijklmnopqrstuvwxyz".index(mark["answer"])]
        said.append(Statement("marks", "mark", mark, name))
    return said


def _answer(row: Row, answers: Mapping[str, str]) -> list[Statement]:
    criterion = row.get("criterion")
    if row["kind"] == "comparisons":
        side = Statement(criterion or "preference", "labels", [SIDES.get(row["preference"], "tie")])
        return (
            [side, Statement("margin", "number", row["margin"])] if row.get("margin") and criterion is None else [side]
        )
    if row["kind"] == "rankings":
        left = [*answers.items()]
        groups = []
        for text in row["answers"]:
            found = next(each for each in left if each[1] == text)
            left.remove(found)
            groups.append([found[0]])
        return [Statement(criterion or "ranking", "ranking", groups)]
    if row["kind"] == "scores":
        return [Statement(criterion or "score", "number", row["score"])]
    if row["kind"] == "choices":
        return [
            Statement(row["criterion"], "labels", [row["choice"]] if isinstance(row["choice"], str) else row["choice"])
        ]
    return []
