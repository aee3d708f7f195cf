"""Passages that somebody marked in an answer, with what they say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rlhf_dist.errors import DataError
from rlhf_dist.files import as_json

MOST = 20
LONGEST = 2000
_SAID = re.compile(r"[^\s*`~#>|-]")
"""What is no white space, and nothing that formatting puts between words; `_` belongs to words."""


@dataclass(frozen=True)
class Mark:
    """A passage of an answer."""

    place: int
    """The answer's, in the task's own order."""
    text: str
    start: int | None
    """Its first character in the answer; None where the answer has no such passage, as formulae that were read as formulae."""
    end: int | None
    comment: str


def taken(
    shown_at: Sequence[str], texts: Sequence[str], comments: Sequence[str], order: Sequence[int], answers: Sequence[str]
) -> list[Mark]:
    """Marks of a form, whose three fields are repeated for each.

    Args:
        shown_at: from left to right, which answer.
        texts: the passages, empty where none is marked.
        comments: what is said of them.
        order: places of the answers from left to right.
        answers: their texts, in the task's own order.

    Raises:
        DataError: there are too many or too long ones, or one is of no answer.
    """
    rows = [row for row in zip(shown_at, texts, comments, strict=False) if row[1].strip()]
    if len(rows) > MOST:
        raise DataError(f"{len(rows)} passages are marked; expected at most {MOST}")
    found = []
    for side, text, comment in rows:
        if not side.isdecimal() or int(side) >= len(order):
            raise DataError(f"a passage is marked in answer {side!r}; expected one of the answers")
        if len(text) > LONGEST or len(comment) > LONGEST:
            raise DataError(
                f"a marked passage or its comment is longer than {LONGEST} characters; expected a shorter one"
            )
        place = order[int(side)]
        start, end = located(answers[place], text.strip())
        found.append(Mark(place, text.strip(), start, end, comment.strip()))
    return found


def located(answer: str, passage: str) -> tuple[int, int] | tuple[None, None]:
    """Where an answer has a passage: word for word, or but for white space and marks of formatting between its words."""
    start = answer.find(passage)
    if start >= 0:
        return start, start + len(passage)
    places = [found.start() for found in _SAID.finditer(answer)]
    words = "".join(_SAID.findall(passage))
    first = "".join(answer[place] for place in places).find(words)
    if not words or first < 0:
        return None, None
    return places[first], places[first + len(words) - 1] + 1


def as_text(marks: Sequence[Mark]) -> str:
    """As the store keeps them."""
    return as_json([asdict(each) for each in marks]) if marks else ""


def from_text(text: str) -> list[Mark]:
    """Marks that the store kept."""
    return [Mark(**each) for each in json.loads(text)] if text else []
