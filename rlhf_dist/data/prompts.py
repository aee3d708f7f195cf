"""Prompts from files: JSONL, Parquet, Arrow, a folder, or a `datasets` name; plain text or chat messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_dist.config import Prompts
from rlhf_dist.data.columns import missing
from rlhf_dist.data.conversations import spoken_text, turns
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.lengths import Lengths
from rlhf_dist.data.tables import read_table
from rlhf_dist.data.templates import Reading, checked_messages, reading_of, render
from rlhf_dist.errors import DataError
from rlhf_dist.files import as_json
from rlhf_dist.progress import counted
from rlhf_dist.records import GREEDY, Prompt, PromptTask

COLUMNS = ("prompt", "messages")
READ = frozenset({*COLUMNS, "tools", "chat_template_kwargs", "special_tokens"})
"""Columns that say what the prompt is, and nothing about its answer."""


def read_prompts(settings: Prompts, tokenizer: Any, *, path: str | None = None) -> list[Prompt]:
    """Tokenised prompts, numbered by their position in the file.

    A chat prompt (a list of messages) goes through the tokenizer's chat template with the generation prompt added.

    Args:
        settings: where they are, and what becomes of those longer than `max_tokens`.
        tokenizer: the policy's, or an `Encoder` of it.
        path: another file than `settings.path`, of the same form.

    Raises:
        DataError: a row has no prompt, an empty one, or one that is too long; names file and line.
    """
    path = path or settings.path
    encoder = Encoder.of(tokenizer)
    lengths = Lengths(settings.max_tokens, settings.too_long, what="the prompt has", key="prompts")
    found = []
    for number, (where, row) in enumerate(counted(read_table(settings, path), f"tokenising {path}")):
        column = _column(where, row, settings.column)
        value = row[column]
        reading = reading_of(settings, where, row)
        text, tokens = encoder.prompt(where, value, reading)
        kept = lengths.fit(where, len(tokens), tokens, partial(encoder.words.tail, tokens, settings.max_tokens))
        if kept is not None:
            spoken = _spoken(value, reading, encoder)
            spoken = spoken if spoken.strip() and spoken != text else ""
            others = other_columns(row, column, settings.columns)
            found.append(Prompt(number, tuple(kept), text, _source(value, reading, spoken), spoken, others))
    lengths.close(path, encoder)
    return found


def _column(where: str, row: Mapping[str, Any], named: str | None) -> str:
    """Where a row has its prompt."""
    if named is not None:
        if named not in row:
            raise missing(where, row, named, expected=f"`{named}` (prompts.column)")
        return named
    chosen = next((name for name in COLUMNS if row.get(name) is not None), None)
    chosen = chosen or next((name for name in COLUMNS if name in row), None)
    if chosen is None:
        raise missing(where, row, *COLUMNS, expected="`prompt` or `messages`, or set prompts.column")
    return chosen


def other_columns(row: Mapping[str, Any], prompt: str, names: Mapping[str, str]) -> str:
    """A row's columns beside its prompt, as JSON; what JSON cannot say, as bytes and dates, is left out.

    Args:
        row: all columns by name.
        prompt: the column with the prompt.
        names: further names of columns (`prompts.columns`); a column that has such a name itself goes before.
    """
    named = {name: row[column] for name, column in names.items() if column in row}
    kept = {name: value for name, value in {**named, **row}.items() if name not in READ and name != prompt}
    if not kept:
        return ""
    try:
        return as_json(kept)
    except (TypeError, RecursionError):
        return as_json(told) if (told := {name: value for name, value in kept.items() if _is_json(value)}) else ""


def _is_json(value: Any) -> bool:
    try:
        as_json(value)
    except (TypeError, RecursionError):
        return False
    return True


def _spoken(value: Any, reading: Reading, encoder: Encoder) -> str:
    """A prompt as people read it."""
    if not isinstance(value, str):
        return spoken_text(turns({"prompt_messages": value, "tools": reading.tools}))
    return encoder.words.quotes.without(value) if reading.special_tokens else encoder.words.without_bos(value)


def _source(value: Any, reading: Reading, spoken: str) -> str:
    """What the tokens were made from, where what people are shown does not give the same ones again."""
    source: dict[str, Any] = {"prompt": value if spoken else None}
    if not isinstance(value, str):
        source = {"prompt_messages": value, "tools": reading.tools, "chat_template_kwargs": dict(reading.template)}
    told = {key: each for key, each in {**source, "special_tokens": reading.special_tokens}.items() if each}
    return as_json(told) if told else ""


def prompt_tokens(where: str, value: Any, tokenizer: Any) -> tuple[str, list[int]]:
    """A prompt's text and tokens, as every stage sees it: plain text with the tokenizer's own beginning, or a chat.

    Raises:
        DataError: it is neither text nor messages; says where.
    """
    return Encoder.of(tokenizer).prompt(where, value)


def answer_tokens(text: str, tokenizer: Any) -> list[int]:
    """An answer's tokens after a plain text prompt, the end token in."""
    return Encoder.of(tokenizer).answer("an answer", text)


def chat_text(where: str, messages: list[Any], tokenizer: Any, *, ask: bool = True) -> str:
    """Messages through the chat template; with `ask` up to where the assistant answers.

    Raises:
        DataError: the tokenizer has no template, it refuses the messages, or they are not `role` and `content` texts.
    """
    return render(where, tokenizer, checked_messages(where, messages, tokenizer), ask=ask)


class PromptSampler:
    """Prompts in a seeded order, epoch after epoch; a batch never holds a prompt twice.

    The order depends on nothing but the seed and the number of prompts, so an iteration's batch can be named without
    replaying the ones before it, and a resumed run goes on where it was.
    """

    def __init__(self, prompts: Sequence[Prompt], *, batch: int, samples: int, seed: int, greedy: bool = False) -> None:
        """Serve `batch` prompts an iteration, each to be answered `samples` times, and with `greedy` once greedily.

        Raises:
            DataError: there are fewer prompts than one batch needs.
        """
        if len(prompts) < batch:
            raise DataError(f"{len(prompts)} prompts; expected at least rl.prompts_per_iteration = {batch}")
        self._prompts, self._batch, self._seed = prompts, batch, seed
        self._samples, self._first = (samples + 1, GREEDY) if greedy else (samples, 0)

    def batch(self, iteration: int) -> list[PromptTask]:
        """The prompts of one iteration; an epoch's last, incomplete batch is left out."""
        per_epoch = len(self._prompts) // self._batch
        epoch, position = divmod(iteration, per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
        return self._tasks(iteration, order[position * self._batch : (position + 1) * self._batch])

    def others(self, iteration: int, *, count: int, used: Collection[int]) -> list[PromptTask]:
        """Further prompts of an iteration, in a seeded order: at most `count`, none whose id is among `used`."""
        order = np.random.default_rng([self._seed, iteration, 1]).permutation(len(self._prompts))
        return self._tasks(iteration, [i for i in order if self._prompts[i].id not in used][:count])

    def _tasks(self, iteration: int, chosen: Iterable[int]) -> list[PromptTask]:
        prompts = [self._prompts[i] for i in chosen]
        return [PromptTask(iteration, each.id, each.tokens, self._samples, self._first) for each in prompts]
