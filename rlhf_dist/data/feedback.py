"""People's judgements of answers: comparisons, rankings, scores and comments, by one or several annotators.

Rows of a file, by kind (further columns are ignored):

    comparisons  prompt, chosen, rejected (TRL's names) [, label, margin, annotator]
                 prompt, a, b, preference: a | b | tie | P(a better) [, margin, annotator]
    rankings     prompt, answers (best first) [, annotator]
    scores       prompt, answer, score [, annotator]
    comments     prompt, answer, comment [, annotator]

A prompt is text or chat messages, an answer text or one message. Without `prompt`, `chosen` and `rejected` are whole chats
that differ in their last message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.config import Feedback
from rlhf_dist.data.demonstrations import completion_text
from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError

PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Judged:
    """What somebody said of one or more answers to a prompt."""

    kind: str
    """As in `config.Feedback`."""
    prompt: Any
    """Text, or messages."""
    answers: tuple[str, ...]
    """Two of a comparison, best first of a ranking, one of a score or comment."""
    label: float
    """P(first answer is better) of a comparison; a score from 0 to 1; 1 for a ranking; NaN for an unread comment."""
    source: str
    where: str
    """File and line."""
    annotator: str = ""
    margin: float = 0.0
    comment: str = ""

    @property
    def task(self) -> tuple[str, str, tuple[str, ...]]:
        """What was judged; equal for the same question to several annotators."""
        return self.kind, repr(self.prompt), self.answers


def read_feedback(files: Sequence[Feedback]) -> list[Judged]:
    """All rows of some feedback files.

    Raises:
        DataError: a row lacks a column or has a value that cannot be; names file and line.
    """
    readers = {"comparisons": _comparison, "rankings": _ranking, "scores": _score, "comments": _comment}
    found = []
    for file in files:
        source = file.source or Path(file.path).stem
        for number, row in enumerate(read_rows(file.path, split=file.split)):
            where = f"{file.path}:{number + 1}"
            found.append(readers[file.kind](where, row, source, file))
    return found


def _comparison(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    if "preference" in row:
        _need(where, row, "prompt", "a", "b")
        prompt, first, second, told = row["prompt"], row["a"], row["b"], row["preference"]
        label: Any = PREFERENCES.get(told) if isinstance(told, str) else told
    else:
        _need(where, row, "chosen", "rejected")
        prompt, first, second = _trl_pair(where, row)
        label = row.get("label", 1.0)
    if not _number(label) or not 0 <= label <= 1:
        raise DataError(f"{where}: preference is {label!r}; expected a, b, tie, or a number from 0 to 1")
    margin = row.get("margin")
    margin = 0.0 if margin is None else margin
    if not _number(margin) or margin < 0:
        raise DataError(f"{where}: margin is {margin!r}; expected a number of at least 0")
    answers = (completion_text(where, first), completion_text(where, second))
    if answers[0] == answers[1]:
        raise DataError(f"{where}: both answers are the same; expected two different ones")
    return _judged("comparisons", where, row, source, prompt, answers, float(label), margin=float(margin))


def _trl_pair(where: str, row: dict[str, Any]) -> tuple[Any, Any, Any]:
    if row.get("prompt") is not None:
        return row["prompt"], row["chosen"], row["rejected"]
    chosen, rejected = row["chosen"], row["rejected"]
    if not (isinstance(chosen, list) and isinstance(rejected, list)) or len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise DataError(f"{where}: no `prompt`; expected one, or two chats that differ in their last message only")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _ranking(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    _need(where, row, "prompt", "answers")
    if not isinstance(row["answers"], list) or len(row["answers"]) < 2:
        raise DataError(f"{where}: answers is {row['answers']!r}; expected a list of two or more, best first")
    answers = tuple(completion_text(where, answer) for answer in row["answers"])
    return _judged("rankings", where, row, source, row["prompt"], answers, 1.0)


def _score(where: str, row: dict[str, Any], source: str, file: Feedback) -> Judged:
    _need(where, row, "prompt", "answer", "score")
    low, high = file.scale
    if not _number(row["score"]) or not low <= row["score"] <= high:
        raise DataError(f"{where}: score is {row['score']!r}; expected a number from {low:g} to {high:g} (scale)")
    label = (row["score"] - low) / (high - low)
    return _judged("scores", where, row, source, row["prompt"], (completion_text(where, row["answer"]),), label)


def _comment(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    _need(where, row, "prompt", "answer", "comment")
    if not isinstance(row["comment"], str) or not row["comment"].strip():
        raise DataError(f"{where}: comment is {row['comment']!r}; expected text")
    answers = (completion_text(where, row["answer"]),)
    return _judged("comments", where, row, source, row["prompt"], answers, math.nan, comment=row["comment"])


def _judged(
    kind: str, where: str, row: dict[str, Any], source: str, *told: Any, margin: float = 0.0, comment: str = ""
) -> Judged:
    prompt, answers, label = told
    annotator = row.get("annotator")
    name = "" if annotator is None else str(annotator)
    return Judged(kind, prompt, answers, label, source, where, name, margin, comment)


def _need(where: str, row: dict[str, Any], *names: str) -> None:
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise DataError(f"{where}: no {missing[0]!r} among {sorted(row)}; expected {', '.join(names)}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
