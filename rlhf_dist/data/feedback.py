"""People's judgements of answers: comparisons, rankings, scores and comments, by one or several annotators.

Rows of a file, by kind (further columns are ignored):

    comparisons  prompt, chosen, rejected (TRL's names) [, label, margin, annotator]
                 prompt, a, b, preference: a | b | tie | P(a better) [, margin, annotator]
    rankings     prompt, answers (best first) [, annotator]
    scores       prompt, answer, score [, scale: [worst, best], annotator]
                 prompt, completion, label: true | false | from 0 to 1 (TRL's names) [, annotator]
    comments     prompt, answer, comment [, annotator]

A row's column `kind` says which; without one, it is a comparison, or TRL's score. Rows of a further question have its name as
`criterion`. Left out are skips, choices (labels), and rows with a `gold`, which is known to be right.

A prompt is text or chat messages, an answer text or one message. `chosen` and `rejected` may also be whole chats that differ
in their last message; a `prompt` beside them is then what the chats begin with, or its text. `prompt_messages`, where
people were shown the prompt as text, goes before `prompt`. `tools` and `chat_template_kwargs` reach the chat template. Messages
may be JSON text, as `rlhf-dist feedback` writes them to Parquet.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_dist.config import Feedback
from rlhf_dist.data.characters import alike
from rlhf_dist.data.columns import meant
from rlhf_dist.data.demonstrations import completion, completion_text
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.learnable import KINDS, Learnable, is_unpaired
from rlhf_dist.data.tables import read_table
from rlhf_dist.data.templates import PLAIN, Reading, column, reading_of
from rlhf_dist.errors import DataError
from rlhf_dist.files import as_json, shown

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
    reading: Reading = PLAIN
    """How its texts become tokens."""
    messages: Mapping[str, Any] = field(default_factory=dict)
    """By an answer's text the message that it stands for, where that has more than text, such as tool calls."""

    @property
    def task(self) -> tuple[str, str, tuple[str, ...]]:
        """What was judged; equal for the same question to several annotators."""
        return self.kind, repr((self.prompt, self.reading)), self.answers


def read_feedback(
    files: Sequence[Feedback], *, kinds: Collection[str] = KINDS, encoder: Encoder | None = None
) -> list[Judged]:
    """All rows of some feedback files that are learnt from; the log says what is left out of a file.

    Args:
        files: their settings.
        kinds: that the stage learns from; others are left out.
        encoder: is told the same.

    Raises:
        DataError: a row lacks a column or has a value that cannot be, or a file has nothing to learn from; names file and line.
    """
    readers = {"comparisons": _comparison, "rankings": _ranking, "scores": _score, "comments": _comment}
    found = []
    for file in files:
        source = ", ".join(filter(None, [file.source or Path(file.path).stem, file.criterion]))
        learnable = Learnable(file, kinds)
        for where, row in read_table(file):
            kind = learnable.kind(where, row)
            if kind is not None:
                made = readers[kind](where, _with_messages(where, row), source, file)
                found.append(replace(made, reading=reading_of(file, where, row)))
        learnable.close(encoder)
    return found


def _with_messages(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt is messages where they are JSON text, or beside it; then, and without a prompt, TRL's answers, too."""
    asked = column(where, row, "prompt_messages", list)
    if asked:
        return {**row, "prompt": asked}
    asked = _messages(row.get("prompt"))
    if asked is None and row.get("prompt") is not None:
        return row
    said = {name: _messages(row.get(name)) for name in ("chosen", "rejected", "completion")}
    found = {name: messages for name, messages in {"prompt": asked, **said}.items() if messages}
    return {**row, **found}


def _messages(value: Any) -> list[Any] | None:
    """Messages that are JSON text."""
    if not isinstance(value, str) or not value.startswith("[{") or not value.rstrip().endswith("}]"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    is_chat = all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found)
    return list(found) if is_chat else None


def _comparison(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    if "preference" in row:
        _need(where, row, "prompt", "a", "b")
        prompt, first, second, told = row["prompt"], row["a"], row["b"], row["preference"]
        label: Any = PREFERENCES.get(told) if isinstance(told, str) else told
        name = "preference"
    else:
        _check_pairs(where, row)
        _need(where, row, "chosen", "rejected")
        prompt, first, second = _trl_pair(where, row)
        told = row.get("label")
        label = 1.0 if told is None else told
        name = "label"
    if not is_number(label) or not 0 <= label <= 1:
        expected = "a, b, tie, or a number from 0 to 1" if name == "preference" else "P(chosen is better), from 0 to 1"
        raise DataError(f"{where}: {name} is {shown(told)}; expected {expected}")
    margin = row.get("margin")
    margin = 0.0 if margin is None else margin
    if not is_number(margin) or margin < 0:
        raise DataError(f"{where}: margin is {margin!r}; expected a number of at least 0")
    given = _answers(where, prompt, first, second)
    if alike(*given[0]):
        raise DataError(
            f"{where}: both answers look the same, but for white space at most; expected two different ones"
        )
    return _judged("comparisons", where, row, source, prompt, given, float(label), margin=float(margin))


def _check_pairs(where: str, row: dict[str, Any]) -> None:
    if is_unpaired(row):
        raise DataError(
            f"{where}: one completion with a label; expected chosen and rejected. Rows of one answer are kind: scores"
        )


def _answers(where: str, prompt: Any, *values: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Answers as text, and by text the messages of those that have more than it, which a chat's template shows."""
    texts: list[str] = []
    messages: dict[str, Any] = {}
    for value in values:
        said = completion(where, value) if isinstance(prompt, list) else completion_text(where, value)
        if isinstance(said, dict):
            more = {key: each for key, each in said.items() if key not in ("role", "content") and each is not None}
            text = "" if more.get("tool_calls") and not said.get("content") else completion_text(where, said)
            if more.get("tool_calls") or text in texts:
                text = f"{text}\n{as_json(more)}".strip()
            messages |= {text: said} if more else {}
            said = text
        texts.append(said)
    return tuple(texts), messages


def _trl_pair(where: str, row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt and both answers, which are texts or messages, or stand at the ends of whole chats."""
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if not all(isinstance(each, list) and len(each) > 1 for each in (chosen, rejected)):
        if prompt is None:
            raise DataError(
                f"{where}: no `prompt`; expected one, or two chats that differ in their last message only{meant(row, 'prompt')}"
            )
        return prompt, chosen, rejected
    assert isinstance(chosen, list)
    assert isinstance(rejected, list)
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            f"{where}: chosen and rejected differ before their last messages; expected two chats that differ there only"
        )
    if isinstance(prompt, list):
        begins = chosen[: len(prompt)] == prompt
    else:
        begins = prompt is None or (isinstance(prompt, str) and _asks(chosen[:-1], prompt))
    if not begins:
        raise DataError(
            f"{where}: prompt is {shown(prompt)}, which the chats do not begin with; expected the same, or none"
        )
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _asks(messages: list[Any], prompt: str) -> bool:
    """Whether a chat's words are a prompt's: one of its messages, or all of what is said before the answer."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [each if isinstance(each, list) else [{"text": each}] for each in contents]
    said = ["".join(str(part.get("text") or "") for part in each if isinstance(part, dict)).strip() for each in parts]
    words = [text for text in said if text]
    return prompt.strip() in words or (bool(words) and all(word in prompt for word in words))


def _ranking(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    _need(where, row, "prompt", "answers")
    ranked = column(where, row, "answers", list)
    if ranked is None or len(ranked) < 2:
        raise DataError(f"{where}: answers is {shown(row['answers'])}; expected a list of two or more, best first")
    given = _answers(where, row["prompt"], *ranked)
    return _judged("rankings", where, row, source, row["prompt"], given, 1.0)


def _score(where: str, row: dict[str, Any], source: str, file: Feedback) -> Judged:
    if is_unpaired(row):
        row = {**row, "answer": row["completion"], "score": row["label"], "scale": [0, 1]}
        row["score"] = int(row["score"]) if isinstance(row["score"], bool) else row["score"]
    _need(where, row, "prompt", "answer", "score")
    low, high = _scale(where, row) or file.scale
    if not is_number(row["score"]) or not low <= row["score"] <= high:
        raise DataError(f"{where}: score is {shown(row['score'])}; expected a number from {low:g} to {high:g} (scale)")
    label = (row["score"] - low) / (high - low)
    return _judged("scores", where, row, source, row["prompt"], _answers(where, row["prompt"], row["answer"]), label)


def _scale(where: str, row: dict[str, Any]) -> list[float] | None:
    scale: list[float] | None = column(where, row, "scale", list)
    if scale is not None and (len(scale) != 2 or not all(map(is_number, scale)) or scale[0] >= scale[1]):
        raise DataError(f"{where}: scale is {shown(scale)}; expected [worst, best] with worst below best")
    return scale


def _comment(where: str, row: dict[str, Any], source: str, _: Feedback) -> Judged:
    _need(where, row, "prompt", "answer", "comment")
    if not isinstance(row["comment"], str) or not row["comment"].strip():
        raise DataError(f"{where}: comment is {shown(row['comment'])}; expected text")
    given = _answers(where, row["prompt"], row["answer"])
    return _judged("comments", where, row, source, row["prompt"], given, math.nan, comment=row["comment"])


def _judged(
    kind: str, where: str, row: dict[str, Any], source: str, *told: Any, margin: float = 0.0, comment: str = ""
) -> Judged:
    prompt, (answers, messages), label = told
    annotator = row.get("annotator")
    name = "" if annotator is None else str(annotator)
    return Judged(kind, prompt, answers, label, source, where, name, margin, comment, messages=messages)


def _need(where: str, row: dict[str, Any], *names: str) -> None:
    empty = [name for name in names if name in row and row[name] is None]
    if empty:
        raise DataError(f"{where}: {empty[0]} is null; expected {', '.join(names)}")
    missing = [name for name in names if name not in row]
    if missing:
        hint = meant(row, *names)
        raise DataError(f"{where}: no {missing[0]!r} among {sorted(row)}; expected {', '.join(names)}{hint}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, small enough for a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
