"""Prompts from files: JSONL, Parquet, Arrow, or a `datasets` name; plain text or chat messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_dist.errors import DataError
from rlhf_dist.records import Prompt, PromptTask

COLUMNS = ("prompt", "messages")
SUFFIXES = (".jsonl", ".parquet", ".arrow")


def read_rows(path: str, *, split: str = "train") -> list[dict[str, Any]]:
    """Rows of a data file, or of a data set that `datasets` finds under that name.

    Raises:
        DataError: the file is missing, empty or malformed; names file and line.
    """
    file = Path(path)
    if not file.exists():
        if file.suffix in SUFFIXES or file.is_absolute() or path.startswith("."):
            raise DataError(f"{path}: no such file; expected JSONL, Parquet or Arrow")
        return _read_dataset(path, split)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}
    if file.suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {file.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    rows = readers[file.suffix](file)
    if not rows:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return rows


def read_prompts(
    path: str, tokenizer: Any, *, max_tokens: int, column: str | None = None, split: str = "train"
) -> list[Prompt]:
    """Tokenised prompts, numbered by their position in the file.

    A chat prompt (a list of messages) goes through the tokenizer's chat template with the generation prompt added.

    Raises:
        DataError: a row has no prompt, an empty one, or one longer than `max_tokens`; names file and line.
    """
    rows = read_rows(path, split=split)
    chosen = column or next((name for name in COLUMNS if name in rows[0]), None)
    if chosen is None:
        raise DataError(
            f"{path}:1: columns are {sorted(rows[0])}; expected `prompt` or `messages`, or set prompts.column"
        )
    return [
        _prompt(f"{path}:{number + 1}", number, row.get(chosen), tokenizer, max_tokens)
        for number, row in enumerate(rows)
    ]


def _prompt(where: str, number: int, value: Any, tokenizer: Any, max_tokens: int) -> Prompt:
    if isinstance(value, str) and value.strip():
        text = value
        tokens = tokenizer(text)["input_ids"]
    elif isinstance(value, list) and value:
        text = chat_text(where, value, tokenizer)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        raise DataError(f"{where}: prompt is {value!r}; expected text, or a list of messages")
    if len(tokens) > max_tokens:
        raise DataError(
            f"{where}: the prompt has {len(tokens)} tokens; expected at most {max_tokens} (prompts.max_tokens). "
            "Raise the limit or shorten the prompt: it is never cut silently"
        )
    return Prompt(number, tuple(tokens), text)


def chat_text(where: str, messages: list[Any], tokenizer: Any) -> str:
    """Messages through the chat template.

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
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            raise DataError(f"{file}:{number}: an empty line; expected a JSON object")
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: found {type(row).__name__}; expected a JSON object")
        rows.append(row)
    return rows


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error
    return rows


def _read_arrow(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        for opener in (pa.ipc.open_file, pa.ipc.open_stream):
            try:
                rows: list[dict[str, Any]] = opener(source).read_all().to_pylist()
            except pa.ArrowInvalid:
                source.seek(0)
            else:
                return rows
    raise DataError(f"{file}: neither an Arrow IPC file nor a stream")


def _read_dataset(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        return list(datasets.load_dataset(name, split=split))
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"{name}: no such file, and `datasets` cannot load it: {error}") from error


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
