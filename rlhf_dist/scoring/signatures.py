"""What functions that score ask for, by the names of their parameters, and how each form of them is called.

Two forms: ours, `function(prompt, answer)` of one answer, and TRL's, `function(prompts, completions, **columns)` of a batch,
where an answer to a chat is `[{"role": "assistant", "content": answer}]` (https://huggingface.co/docs/trl/grpo_trainer, "Using
a custom reward function"). Of both, further parameters are columns of the prompts' file.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

OURS = 2
"""Prompt and answer, by position."""
TRLS = ("prompts", "completions")
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Asks(NamedTuple):
    """What a function is to be given; travels as JSON."""

    batch: bool = False
    """TRL's form."""
    texts: Sequence[str] = ()
    """Its parameters for prompt and answer, whose names no column has for it."""
    needed: Sequence[str] = ()
    """Columns without which it cannot be called."""
    taken: Sequence[str] = ()
    """Columns that it takes where a row has them."""
    everything: bool = False
    """It takes all columns."""

    @property
    def columns(self) -> bool:
        """Whether it asks for any."""
        return bool(self.needed or self.taken or self.everything)

    @property
    def rows(self) -> bool:
        """Whether it is told more than prompt and answer: TRL's form sees chats as messages."""
        return self.columns or self.batch

    def missing(self, columns: Sequence[str]) -> list[str]:
        """Parameters that no column provides."""
        return [name for name in self.needed if name not in columns]


class Item(NamedTuple):
    """One answer, as a function's process is given it."""

    prompt: str
    answer: str
    columns: Mapping[str, Any]
    messages: Sequence[Any] | None
    """The prompt of a chat."""

    @classmethod
    def of(cls, prompt: str, answer: str, columns: str = "", source: str = "") -> Item:
        """From what travels: of `records.RowTold` JSON, or nothing."""
        chat = json.loads(source).get("prompt_messages") if source else None
        return cls(prompt, answer, json.loads(columns) if columns else {}, chat)


def asks_of(function: Callable[..., Any]) -> Asks:
    """What a function's parameters ask for.

    Raises:
        TypeError: it takes no prompt and answer, or something by position only that has no name of a column.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except ValueError:  # of a builtin, nobody knows
        return Asks()
    everything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    named = [each for each in parameters if each.kind in BY_NAME]
    if any(each.name in TRLS for each in named):
        texts = [each.name for each in named if each.name in TRLS]
        return _asks(True, texts, [each for each in named if each.name not in TRLS], everything)
    by_place = [each for each in parameters if each.kind in BY_PLACE]
    anything = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    others = by_place[OURS:]
    nameless = [each for each in others if each.kind not in BY_NAME and each.default is each.empty]
    if (len(by_place) < OURS and not anything) or nameless:
        raise TypeError(
            f"{inspect.signature(function)}; expected (prompt, answer), or TRL's (prompts, completions, ...)"
        )
    texts = [each.name for each in by_place[:OURS]]
    return _asks(False, texts, [each for each in named if each.name not in texts], everything)


def _asks(batch: bool, texts: Sequence[str], columns: Sequence[inspect.Parameter], everything: bool) -> Asks:
    needed = tuple(each.name for each in columns if each.default is each.empty)
    taken = tuple(each.name for each in columns if each.name not in needed)
    return Asks(batch, tuple(texts), needed, taken, everything)


def called(function: Callable[..., Any], asks: Asks, item: Item) -> Any:
    """What a function of our form says of an answer; columns that are null or not there are None, or its own default."""
    given = {name: item.columns.get(name) for name in asks.needed}
    wanted = item.columns if asks.everything else asks.taken
    given |= {name: each for name in wanted if (each := item.columns.get(name)) is not None and name not in asks.texts}
    return _awaited(function(item.prompt, item.answer, **given))


def called_together(function: Callable[..., Any], asks: Asks, items: Sequence[Item]) -> list[Any]:
    """What a function of TRL's form says of several answers.

    Raises:
        ValueError: it does not say something of each.
    """
    there = dict.fromkeys(name for item in items for name in item.columns if name not in TRLS)
    names = [*asks.needed, *(there if asks.everything else (name for name in asks.taken if name in there))]
    texts: dict[str, list[Any]] = {
        "prompts": [item.prompt if item.messages is None else item.messages for item in items],
        "completions": [
            item.answer if item.messages is None else [{"role": "assistant", "content": item.answer}] for item in items
        ],
    }
    given = texts if asks.everything else {name: texts[name] for name in asks.texts}
    columns = {name: [item.columns.get(name) for item in items] for name in names}
    said = [*_awaited(function(**given, **columns))]
    if len(said) != len(items):
        raise ValueError(f"it returned {len(said)} scores for {len(items)} answers; expected one each")
    return said


def _awaited(said: Any) -> Any:
    return asyncio.run(said) if inspect.iscoroutine(said) else said
