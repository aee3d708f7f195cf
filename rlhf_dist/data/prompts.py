"""Prompts from files: JSONL, Parquet, Arrow, or a `datasets` name; plain text or chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_dist.config import Prompts
from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.progress import counted
from rlhf_dist.records import Prompt, PromptTask

COLUMNS = ("prompt", "messages")


def read_prompts(settings: Prompts, tokenizer: Any, *, path: str | None = None) -> list[Prompt]:
    """Tokenised prompts, numbered by their position in the file.

    A chat prompt (a list of messages) goes through the tokenizer's chat template with the generation prompt added.

    Args:
        settings: where they are.
        tokenizer: the policy's.
        path: another file than `settings.path`, of the same form.

    Raises:
        DataError: a row has no prompt, an empty one, or one longer than `prompts.max_tokens`; names file and line.
    """
    path = path or settings.path
    rows = read_rows(path, split=settings.split)
    chosen = settings.column or next((name for name in COLUMNS if name in rows[0]), None)
    if chosen is None:
        raise DataError(
            f"{path}:1: columns are {sorted(rows[0])}; expected `prompt` or `messages`, or set prompts.column"
        )
    return [
        _prompt(f"{path}:{number + 1}", number, row.get(chosen), tokenizer, settings.max_tokens)
        for number, row in enumerate(counted(rows, f"tokenising {path}"))
    ]


def _prompt(where: str, number: int, value: Any, tokenizer: Any, max_tokens: int) -> Prompt:
    text, tokens = prompt_tokens(where, value, tokenizer)
    if len(tokens) > max_tokens:
        raise DataError(
            f"{where}: the prompt has {len(tokens)} tokens; expected at most {max_tokens} (prompts.max_tokens). "
            "Raise the limit or shorten the prompt: it is never cut silently"
        )
    return Prompt(number, tuple(tokens), text)


def prompt_tokens(where: str, value: Any, tokenizer: Any) -> tuple[str, list[int]]:
    """A prompt's text and tokens, as every stage sees it: plain text with the tokenizer's own beginning, or a chat.

    Raises:
        DataError: it is neither text nor messages; says where.
    """
    if isinstance(value, str) and value.strip():
        return value, tokenizer(value)["input_ids"]
    if isinstance(value, list) and value:
        text = chat_text(where, value, tokenizer)
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]
    raise DataError(f"{where}: prompt is {value!r}; expected text, or a list of messages")


def answer_tokens(text: str, tokenizer: Any) -> list[int]:
    """An answer's tokens after a prompt, the end token in."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def chat_text(where: str, messages: list[Any], tokenizer: Any, *, ask: bool = True) -> str:
    """Messages through the chat template; with `ask` up to where the assistant answers.

    Raises:
        DataError: the tokenizer has no template, or the messages are not `role` and `content` texts.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"{where}: found chat messages, but the tokenizer has no chat template; expected plain text prompts"
        )
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: message {message!r}; expected a mapping with texts `role` and `content`")
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    return text


class PromptSampler:
    """Prompts in a seeded order, epoch after epoch; a batch never holds a prompt twice.

    The order depends on nothing but the seed and the number of prompts, so an iteration's batch can be named without
    replaying the ones before it, and a resumed run goes on where it was.
    """

    def __init__(self, prompts: Sequence[Prompt], *, batch: int, samples: int, seed: int) -> None:
        """Serve `batch` prompts an iteration, each to be answered `samples` times.

        Raises:
            DataError: there are fewer prompts than one batch needs.
        """
        if len(prompts) < batch:
            raise DataError(f"{len(prompts)} prompts; expected at least ppo.prompts_per_iteration = {batch}")
        self._prompts, self._batch, self._samples, self._seed = prompts, batch, samples, seed

    def batch(self, iteration: int) -> list[PromptTask]:
        """The prompts of one iteration; an epoch's last, incomplete batch is left out."""
        per_epoch = len(self._prompts) // self._batch
        epoch, position = divmod(iteration, per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
        chosen = order[position * self._batch : (position + 1) * self._batch]
        return [PromptTask(iteration, self._prompts[i].id, self._prompts[i].tokens, self._samples) for i in chosen]
