"""Demonstrations: answers to imitate, with the loss on what the assistant says and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rlhf_dist.config import DataFile, Demonstrations
from rlhf_dist.data.columns import missing
from rlhf_dist.data.encoder import Conversation, Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.lengths import Lengths
from rlhf_dist.data.tables import held_out, read_table
from rlhf_dist.data.templates import reading_of
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown
from rlhf_dist.progress import counted


@dataclass(frozen=True)
class Demonstration:
    """One tokenised row."""

    key: str
    """Its prompt, by which rows are held out."""
    tokens: list[int]
    selected: list[int]
    """Positions whose next token is the assistant's."""
    where: str = ""
    """File and line."""


def read_demonstrations(
    path: str, tokenizer: Any, *, max_tokens: int, split: str = "train", settings: Demonstrations | None = None
) -> list[Demonstration]:
    """Rows with `prompt` and `completion`, or with chat `messages`.

    Args:
        path: the file.
        tokenizer: the model's, or an `Encoder` of it.
        max_tokens: of the longest row.
        split: of a folder or data set.
        settings: how else the file is read.

    Raises:
        DataError: a row has neither, is empty, says nothing as the assistant, or has over `max_tokens` tokens; names file
            and line.
    """
    file = (settings or Demonstrations()).model_copy(update={"split": split})
    encoder = Encoder.of(tokenizer)
    lengths = Lengths(max_tokens, file.too_long, what="the row has", key="data")
    found = []
    for where, row in counted(read_table(file, path), f"tokenising {path}"):
        made = _demonstration(where, _conversation(where, row, encoder, file))
        kept = lengths.fit(where, len(made.tokens), made, partial(_beginning, made, max_tokens))
        if kept is not None:
            found.append(kept)
    lengths.close(path, encoder)
    return found


def _conversation(where: str, row: dict[str, Any], encoder: Encoder, file: DataFile) -> Conversation:
    reading = reading_of(file, where, row)
    if row.get("messages") is not None:
        return encoder.chat(where, row["messages"], reading)
    if "prompt" in row and "completion" in row:
        is_chat = isinstance(row["prompt"], list)
        answer = (completion if is_chat else completion_text)(where, row["completion"])
        return encoder.pair(where, row["prompt"], answer, reading)
    if "messages" in row:
        raise DataError(f"{where}: messages is None; expected a list of messages")
    names = ("messages", "prompt", "completion")
    raise missing(where, row, *names, expected="`prompt` and `completion`, or `messages`")


def _demonstration(where: str, made: Conversation) -> Demonstration:
    return Demonstration(made.key, made.tokens, made.selected, where)


def _beginning(made: Demonstration, most: int) -> Demonstration | None:
    """The beginning of a row that is too long; None: nothing is learnt of it."""
    left = [position for position in made.selected if position < most - 1]
    return replace(made, tokens=made.tokens[:most], selected=left) if left else None


def split_demonstrations(
    rows: Sequence[Demonstration], share: float
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """Rows for training, and rows for evaluation; those of one prompt stay together."""
    away = held_out([row.key for row in rows], share)
    return [row for row, out in zip(rows, away, strict=True) if not out], [
        row for row, out in zip(rows, away, strict=True) if out
    ]


def demonstration_set(rows: Sequence[Demonstration]) -> ExampleSet:
    """Rows as the learner reads them; each weighs as many as it has tokens to learn."""
    table = example_table([row.tokens for row in rows], [row.selected for row in rows])
    units = [[number] for number in range(len(rows))]
    return ExampleSet(table, units, [float(len(row.selected)) for row in rows], [row.where for row in rows])


def length_statistics(rows: Sequence[Demonstration]) -> dict[str, float]:
    """Rows, and tokens of a row and of its answer: mean, median, 95th percentile, longest."""
    found = {"rows": float(len(rows))}
    for name, lengths in (
        ("tokens", [len(row.tokens) for row in rows]),
        ("answer_tokens", [len(row.selected) for row in rows]),
    ):
        found |= {
            f"{name}/mean": float(np.mean(lengths)),
            f"{name}/p50": float(np.percentile(lengths, 50)),
            f"{name}/p95": float(np.percentile(lengths, 95)),
            f"{name}/max": float(np.max(lengths)),
        }
    return found


def completion(where: str, value: Any) -> str | dict[str, Any]:
    """An answer to a chat: text, or a message of the assistant with all that a template may show of it, such as tool calls.

    Raises:
        DataError: it is neither, empty, or somebody else's; names file and line.
    """
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(message, dict):
        return completion_text(where, value)
    if not message.get("tool_calls") or message.get("role") != "assistant":
        completion_text(where, message)
    return {"role": "assistant", **message}


def completion_text(where: str, value: Any) -> str:
    """An answer as text: it is text, or a message of the assistant, which may stand alone in a list.

    Raises:
        DataError: it is neither, empty, or somebody else's; names file and line.
    """
    if isinstance(value, (list, dict)):
        message = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(message, dict):
            if message.get("role", "assistant") != "assistant":
                raise DataError(f"{where}: the answer is a message of the role {message['role']!r}; expected assistant")
            value = message.get("content")
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        value = "".join(str(part["text"]) for part in value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: answer is {shown(value)}; expected text, or a list of one message")
    return value
