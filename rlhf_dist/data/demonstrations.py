"""Demonstrations: answers to imitate, with the loss on what the assistant says and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.prompts import answer_tokens, chat_text, prompt_tokens
from rlhf_dist.data.tables import held_out, read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.progress import counted


@dataclass(frozen=True)
class Demonstration:
    """One tokenised row."""

    key: str
    """Its prompt, by which rows are held out."""
    tokens: list[int]
    selected: list[int]
    """Positions whose next token is the assistant's."""


def read_demonstrations(path: str, tokenizer: Any, *, max_tokens: int, split: str = "train") -> list[Demonstration]:
    """Rows with `prompt` and `completion`, or with chat `messages`.

    Raises:
        DataError: a row has neither, is empty, says nothing as the assistant, or has over `max_tokens` tokens; names file
            and line.
    """
    found = []
    for number, row in enumerate(counted(read_rows(path, split=split), f"tokenising {path}")):
        where = f"{path}:{number + 1}"
        made = _of_messages(where, row["messages"], tokenizer) if "messages" in row else _of_pair(where, row, tokenizer)
        if len(made.tokens) > max_tokens:
            raise DataError(
                f"{where}: {len(made.tokens)} tokens; expected at most {max_tokens} (data.max_tokens). Raise the limit or "
                "shorten the row: it is never cut silently"
            )
        found.append(made)
    return found


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
    return ExampleSet(table, [[number] for number in range(len(rows))], [float(len(row.selected)) for row in rows])


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


def _of_pair(where: str, row: dict[str, Any], tokenizer: Any) -> Demonstration:
    if not {"prompt", "completion"} <= row.keys():
        raise DataError(f"{where}: columns are {sorted(row)}; expected `prompt` and `completion`, or `messages`")
    text, prompt = prompt_tokens(where, row["prompt"], tokenizer)
    answer = answer_tokens(completion_text(where, row["completion"]), tokenizer)
    start = len(prompt) - 1
    return Demonstration(text, prompt + answer, list(range(start, start + len(answer))))


def completion_text(where: str, value: Any) -> str:
    """An answer as text: it is text, or a list with one message of the assistant.

    Raises:
        DataError: it is neither, or empty.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: answer is {value!r}; expected text, or a list of one message")
    return value


def _of_messages(where: str, messages: Any, tokenizer: Any) -> Demonstration:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages is {messages!r}; expected a list of messages")
    text = chat_text(where, messages, tokenizer, ask=False)
    says = _says_by_template(messages, tokenizer) if "generation" in tokenizer.chat_template else None
    tokens, mask = says or _says_by_prefix(where, text, messages, tokenizer)
    selected = [position - 1 for position, said in enumerate(mask) if said and position > 0]
    if not selected:
        raise DataError(f"{where}: the assistant says nothing; expected a message of the role assistant")
    first = next((n for n, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return Demonstration(chat_text(where, messages[:first], tokenizer) if first else text, tokens, selected)


def _says_by_template(messages: list[Any], tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """Tokens and the template's own mask of what is generated; None where the template marks nothing."""
    told = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return (list(told["input_ids"]), list(told["assistant_masks"])) if any(told["assistant_masks"]) else None


def _says_by_prefix(where: str, text: str, messages: list[Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Without a mask: an assistant's words are what its message adds to the text that asks for it."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat_text(where, messages[:number], tokenizer) if number else ""
        after = chat_text(where, messages[: number + 1], tokenizer, ask=False)
        if not (after.startswith(before) and text.startswith(after)):
            raise DataError(
                f"{where}: the chat template rewrites earlier messages, so what message {number + 1} adds cannot be told; "
                "expected a template with {% generation %}"
            )
        spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [
        int(any(begin >= start and end <= stop and end > begin for start, stop in spans))
        for begin, end in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], mask
