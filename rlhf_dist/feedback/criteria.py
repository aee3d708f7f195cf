"""Further questions of a task, each with its own scale: of the store's guide, or a task's own `criteria`.

- {name: helpful, ask: "Does it help?", scale: [1, 7], words: {1: not at all, 7: very much}}     a score of each answer
- {name: harmless, kind: comparison}                                                           which answer is it more?
- {name: language, kind: choice, choices: [good, broken, other], of: answers}                  one of some words
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rlhf_dist.data.characters import unseen
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.verdicts import by_own_sides
from rlhf_dist.files import as_json

CHOICES = ("a", "tie", "b")
"""What a further comparison can say."""
LARGEST_SCALE = 11
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and halves of characters, which not every database keeps."""


class Criterion(BaseModel):
    """One further question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=60)
    ask: str = Field("", max_length=300)
    """The question itself; empty: the name."""
    kind: Literal["score", "comparison", "choice"] = "score"
    scale: tuple[int, int] = (1, 5)
    """Of a score, worst and best."""
    words: dict[int, str] = Field(default_factory=dict)
    """What some of its numbers mean."""
    choices: tuple[str, ...] = ()
    of: Literal["answers", "task"] = "answers"
    """What a score or choice is about: each answer, or the task as a whole."""
    required: bool = True

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Criterion:
        for text in (self.name, *self.choices):
            if (odd := unseen(text)) or not text.strip():
                raise ValueError(
                    f"{text!r} has {odd or 'nothing'!r}; expected names and choices with only what is seen"
                )
        if found := UNSTORABLE.search(" ".join([self.ask, *self.words.values()])):
            raise ValueError(f"it is asked with {found[0]!r}; expected whole characters")
        low, high = self.scale
        if self.kind == "score" and not 1 <= high - low < LARGEST_SCALE:
            raise ValueError(f"scale is [{low}, {high}]; expected [worst, best] with 2 to {LARGEST_SCALE} numbers")
        if (self.kind == "choice") != (len(set(self.choices)) > 1):
            raise ValueError(f"choices is {list(self.choices)}; expected two or more of a choice, none of other kinds")
        return self

    @property
    def question(self) -> str:
        """As it is asked."""
        return self.ask or self.name

    @property
    def values(self) -> tuple[str, ...]:
        """What may be said."""
        if self.kind == "score":
            return tuple(map(str, range(self.scale[0], self.scale[1] + 1)))
        return CHOICES if self.kind == "comparison" else self.choices

    def places(self, answers: int) -> tuple[int | None, ...]:
        """The answers that it is asked of; None is the task as a whole."""
        return tuple(range(answers)) if self.kind != "comparison" and self.of == "answers" else (None,)


@dataclass(frozen=True)
class Given:
    """An answer to a further question, as the store keeps it."""

    criterion: str
    kind: str
    place: int | None
    value: str
    low: float | None = None
    high: float | None = None


def checked_criteria(where: str, value: object) -> list[Criterion]:
    """Criteria from what a file says.

    Raises:
        DataError: they are none; begins with `where` and names the place.
    """
    try:
        found = TypeAdapter(list[Criterion]).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "criteria"
        raise DataError(
            f"{where}: {place}: {first['msg']}; expected a list of criteria with name, ask, kind, scale"
        ) from None
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise DataError(f"{where}: criteria are named {', '.join(names)}; expected different names")
    return found


def as_text(criteria: Sequence[Criterion]) -> str:
    """As the store keeps them; `from_text` reads it."""
    return as_json([each.model_dump(mode="json", exclude_defaults=True) for each in criteria]) if criteria else ""


def from_text(text: str) -> list[Criterion]:
    """Criteria that the store kept."""
    return checked_criteria("the store's criteria", json.loads(text)) if text else []


def field_name(number: int, shown_at: int | None) -> str:
    """Of a form's field: the criterion's number, and from left to right the answer's."""
    return f"criterion-{number}" if shown_at is None else f"criterion-{number}-{shown_at}"


def taken(criteria: Sequence[Criterion], form: Mapping[str, Any], order: Sequence[int]) -> list[Given]:
    """What a form says to some criteria.

    Args:
        criteria: that were asked.
        form: values by field.
        order: places of the answers from left to right.

    Raises:
        DataError: a required one is missing, or a value is none of those offered.
    """
    found = []
    for number, each in enumerate(criteria):
        for shown_at in each.places(len(order)):
            value = str(form.get(field_name(number, shown_at)) or "")
            if not value and not each.required:
                continue
            if value not in each.values:
                raise DataError(f"{each.name} is {value!r}; expected one of {', '.join(each.values)}")
            said = by_own_sides(value, order) if each.kind == "comparison" else value
            low, high = each.scale if each.kind == "score" else (None, None)
            found.append(Given(each.name, each.kind, None if shown_at is None else order[shown_at], said, low, high))
    return found
