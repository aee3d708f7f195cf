"""A task as one annotator sees it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf_dist.data.conversations import turns
from rlhf_dist.feedback.assignment import Posed
from rlhf_dist.feedback.criteria import Criterion, field_name, from_text
from rlhf_dist.feedback.differences import differences, why_unmarked
from rlhf_dist.feedback.guide import Guide
from rlhf_dist.feedback.orders import order_of
from rlhf_dist.feedback.rendering import plain, rendered
from rlhf_dist.feedback.verdicts import LETTERS, SCORES

MODES = ("formatted", "raw", "differences")
SCORE_WORDS = {1: "Useless", 3: "Fair", 5: "Perfect"}


@dataclass(frozen=True)
class Side:
    """An answer."""

    letter: str
    """By which it is called; empty if it is the only one."""
    html: Markup


@dataclass(frozen=True)
class Part:
    """What somebody said before the answer."""

    role: str
    speaker: str
    html: Markup


@dataclass(frozen=True)
class Field:
    """A row of choices, one of which may be made."""

    name: str
    label: str
    values: list[tuple[str, str]]
    """What is sent, and what is read."""
    required: bool


@dataclass(frozen=True)
class Question:
    """A further question, with a field for each answer or one for all."""

    name: str
    ask: str
    fields: list[Field]


def asked_of(task: Posed, guide: Guide) -> list[Criterion]:
    """Further questions of a task: its own, else the guide's; which of two is more so only where there are two."""
    asked = from_text(task.criteria) if task.criteria else guide.criteria
    two = len(json.loads(task.sources)) == 2
    return [each for each in asked if two or each.kind != "comparison"]


def view_of(task: Posed, annotator_id: int, guide: Guide, mode: str) -> dict[str, Any]:
    """What the page's template takes."""
    answers: list[str] = json.loads(task.answers)
    order = order_of(task.id, annotator_id, len(answers))
    shown = [answers[place].strip() for place in order]
    letters = [LETTERS[number].upper() for number in range(len(shown))] if len(shown) > 1 else [""]
    pair = len(shown) == 2
    mode = mode if pair or mode != "differences" else "raw"
    asked = asked_of(task, guide)
    return {
        "task": task,
        "mode": mode,
        "parts": parts(task, mode),
        "sides": [Side(letter, html) for letter, html in zip(letters, _sides(shown, mode), strict=True)],
        "unmarked": why_unmarked(*shown) if pair and mode == "differences" else "",
        "hint": guide.asks(task.kind),
        "guidelines": rendered(guide.guidelines) if guide.guidelines else None,
        "scores": [(score, SCORE_WORDS.get(score, "")) for score in SCORES],
        "ranks": _ranks(letters) if task.kind == "ranking" else [],
        "questions": [_question(number, each, letters) for number, each in enumerate(asked)],
    }


def parts(task: Posed, mode: str) -> list[Part]:
    """The prompt, a chat's by turns."""
    columns = json.loads(task.columns) if task.columns else {}
    said = turns(columns) if columns.get("prompt_messages") else []
    show = rendered if mode == "formatted" else plain
    if not said:
        return [Part("", "", show(json.loads(task.prompt)))]
    return [Part(each.role, each.speaker, show(each.text)) for each in said]


def sides_of(task: Posed, mode: str) -> list[Side]:
    """A task's answers in its own order, as supervisors see them."""
    answers = [each.strip() for each in json.loads(task.answers)]
    return [Side(LETTERS[place].upper(), html) for place, html in enumerate(_sides(answers, mode))]


def _sides(shown: Sequence[str], mode: str) -> list[Markup]:
    """Each answer as it is seen."""
    if mode == "formatted":
        return [rendered(each) for each in shown]
    if mode == "raw" or len(shown) != 2 or why_unmarked(*shown):
        return [plain(each) for each in shown]
    return [_marked(side) for side in differences(*shown)]


def _marked(pieces: Sequence[tuple[str, bool]]) -> Markup:
    return Markup("").join(
        Markup("<mark>{}</mark>").format(plain(text)) if differs else plain(text) for text, differs in pieces
    )


def _ranks(letters: Sequence[str]) -> list[Field]:
    numbers = [(str(rank), str(rank)) for rank in range(1, len(letters) + 1)]
    return [Field(f"rank-{side}", letter, numbers, required=True) for side, letter in enumerate(letters)]


def _question(number: int, asked: Criterion, letters: Sequence[str]) -> Question:
    fields = [
        Field(
            field_name(number, side),
            "" if side is None else letters[side],
            [(value, _word(asked, value)) for value in asked.values],
            asked.required,
        )
        for side in asked.places(len(letters))
    ]
    return Question(asked.name, asked.question, fields)


def _word(asked: Criterion, value: str) -> str:
    if asked.kind == "comparison":
        return {"a": "A", "tie": "Equal", "b": "B"}[value]
    word = asked.words.get(int(value)) if asked.kind == "score" else None
    return f"{value} {word}" if word else value
