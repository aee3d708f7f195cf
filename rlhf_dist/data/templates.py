"""Chat templates: messages are checked before, people's words are hidden from the template's tokens, errors have a place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from rlhf_dist.config.sections import TAKEN_ARGUMENTS, DataFile
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}
RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template's own code can raise; it runs in transformers' sandbox."""
_PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_TAKES_PARTS = re.compile(r"is (not )?(string|iterable|sequence)|in \w+(\.content|\[['\"]content['\"]\])")


@dataclass(frozen=True)
class Reading:
    """How a row's texts become tokens, by its file's settings and its own columns."""

    special_tokens: bool = False
    """Whether text that spells a special token becomes that token."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template."""
    tools: Sequence[Any] | None = None


PLAIN = Reading()


def reading_of(file: DataFile, where: str, row: Mapping[str, Any]) -> Reading:
    """A row's reading: its own columns `tools`, `chat_template_kwargs` and `special_tokens` go before its file's settings.

    Raises:
        DataError: a column is not what a template takes; names file and line.
    """
    tools = column(where, row, "tools", list)
    own = column(where, row, "chat_template_kwargs", dict) or {}
    taken = [name for name in own if name in TAKEN_ARGUMENTS]
    if taken:
        raise DataError(
            f"{where}: chat_template_kwargs has {taken[0]!r}, an argument of apply_chat_template itself; expected the "
            "template's own"
        )
    special = row.get("special_tokens")
    if special is not None and not isinstance(special, bool):
        raise DataError(f"{where}: special_tokens is {shown(special)}; expected true or false")
    kwargs = {**file.chat_template_kwargs, **{key: value for key, value in own.items() if value is not None}}
    return Reading(file.special_tokens if special is None else special, kwargs, tools or None)


def column(where: str, row: Mapping[str, Any], name: str, kind: type) -> Any:
    """A column with a list or mapping, which may be JSON text; None: it is not there.

    Raises:
        DataError: it is something else; names file and line.
    """
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {name} is text that is not JSON: {error}") from None
    if value is not None and not isinstance(value, kind):
        raise DataError(f"{where}: {name} is {shown(value)}; expected a {'list' if kind is list else 'mapping'}")
    return value


def apply_template(tokenizer: Any, messages: Sequence[Any], *, ask: bool, reading: Reading | None = None) -> str:
    """Messages through the template, raising whatever it raises."""
    read = reading or Reading()
    text: str = tokenizer.apply_chat_template(
        list(messages), tools=read.tools, tokenize=False, add_generation_prompt=ask, **read.template
    )
    return text


def render(where: str, tokenizer: Any, messages: Sequence[Any], *, ask: bool, reading: Reading | None = None) -> str:
    """Messages through the chat template; with `ask` up to where the assistant answers.

    Raises:
        DataError: the template refuses them; says where and why.
    """
    try:
        return apply_template(tokenizer, messages, ask=ask, reading=reading)
    except RENDER_ERRORS as error:
        told = str(error) or type(error).__name__
        raise DataError(f"{where}: the chat template cannot render these messages: {told}") from error


def checked_messages(where: str, messages: Any, tokenizer: Any, *, tools: Any = None) -> list[dict[str, Any]]:
    """Messages as the tokenizer's template takes them: without null fields, contents in the form that it reads.

    Raises:
        DataError: there is no template, or a message is not one that it knows; names file and line.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: found chat messages, but the tokenizer has no chat template; expected plain text prompts"
        )
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages is {shown(messages)}; expected a list of messages")
    source = template_source(where, tokenizer, tools)
    return [_checked(f"{where}: message {number}", message, source) for number, message in enumerate(messages, start=1)]


def template_source(where: str, tokenizer: Any, tools: Any = None) -> str:
    """The template's own text, of several the one that these messages go through.

    Raises:
        DataError: there are several, and none is meant for them.
    """
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    try:
        source: str = tokenizer.get_chat_template(None, tools)
    except ValueError as error:
        raise DataError(f"{where}: no chat template to take: {error}") from error
    return source


def _checked(where: str, message: Any, source: str) -> dict[str, Any]:
    if isinstance(message, dict) and {"from", "value"} <= message.keys() and "role" not in message:
        role = SHAREGPT.get(str(message["from"]), str(message["from"]))
        raise DataError(
            f"{where} has `from` and `value`; expected `role` and `content`, here the role {role!r}. Rename them"
        )
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
        raise DataError(f"{where} is {shown(message)}; expected a mapping with texts `role` and `content`")
    _check_role(where, message["role"], source)
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    content = message["content"]
    calls = bool(kept.get("tool_calls"))
    if (content is None or (calls and content in ("", []))) and not (calls and "tool_calls" in source):
        raise DataError(
            f"{where} has no content; expected text"
            + (", since the chat template takes no `tool_calls`" if "tool_calls" in kept else "")
        )
    if isinstance(content, list) and not _TAKES_PARTS.search(source):
        kept["content"] = _joined(where, content)
    elif content is not None and not isinstance(content, (str, list)):
        raise DataError(f"{where}: content is {shown(content)}; expected text")
    return kept


def _check_role(where: str, role: str, source: str) -> None:
    """Templates render any role, so that a wrong one would be learnt in silence."""
    if role in ROLES or f"'{role}'" in source or f'"{role}"' in source:
        return
    near = SHAREGPT.get(role.strip().lower()) or role.strip().lower()
    hint = f"; did you mean {near!r}?" if near in ROLES else ""
    raise DataError(f"{where}: role is {role!r}; expected {', '.join(ROLES[:-1])} or {ROLES[-1]}{hint}")


def _joined(where: str, parts: list[Any]) -> str:
    """The text of a content in parts, for templates that take text."""
    for part in parts:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"):
            raise DataError(
                f"{where}: content has the part {shown(part)}; expected text, which is all this template takes"
            )
    return "".join(part["text"] for part in parts)


def spoken(messages: Sequence[Mapping[str, Any]]) -> str:
    """What messages say, without who says it."""
    contents = [message.get("content") for message in messages]
    parts = [each if isinstance(each, list) else [{"text": each}] for each in contents]
    return "\n".join("".join(str(part.get("text") or "") for part in each) for each in parts)


class Quotes:
    """Texts in which spelled special tokens are hidden behind characters of Unicode's private planes.

    So a template sees people's words as words, and its own tokens are the only ones in what it renders.
    """

    def __init__(self, specials: Iterable[str]) -> None:
        """Take the special tokens' texts; private characters that a text has itself are hidden as well."""
        self._known = list(dict.fromkeys(specials))
        self._places = {text: number for number, text in enumerate(self._known)}
        longest = map(re.escape, sorted(self._known, key=len, reverse=True))
        self._pattern = re.compile("|".join([*longest, _PRIVATE.pattern]))
        self.hidden = 0
        """Special tokens hidden so far."""

    def spells(self, text: str) -> bool:
        """Whether a text spells a special token."""
        return any(not _PRIVATE.match(found[0]) for found in self._pattern.finditer(text))

    def hide(self, value: Any) -> Any:
        """A value with every text in it hidden, keys and roles as they are."""
        if isinstance(value, str):
            return self._pattern.sub(self._hidden, value)
        if isinstance(value, dict):
            return {key: each if key == "role" else self.hide(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(each) for each in value]
        return value

    def show(self, text: str) -> str:
        """A text as it was before hiding."""
        return _PRIVATE.sub(lambda found: self._known[_number(found[0])], text)

    def without(self, text: str) -> str:
        """A text without the special tokens that it spells."""
        return self._pattern.sub(lambda found: found[0] if _PRIVATE.match(found[0]) else "", text)

    def hides(self, value: Any) -> bool:
        """Whether anything is hidden in a value."""
        if isinstance(value, dict):
            return any(map(self.hides, value.values()))
        return any(map(self.hides, value)) if isinstance(value, list) else isinstance(value, str) and self.has(value)

    @staticmethod
    def has(text: str) -> bool:
        """Whether anything is hidden in a text."""
        return _PRIVATE.search(text) is not None

    def _hidden(self, found: re.Match[str]) -> str:
        text = found[0]
        if text not in self._places:
            self._places[text] = len(self._known)
            self._known.append(text)
        elif not _PRIVATE.match(text):
            self.hidden += 1
        number = self._places[text]
        return chr(0xF0000 + number if number < 0xFFFE else 0x100000 + number - 0xFFFE)


def _number(char: str) -> int:
    code = ord(char)
    return code - 0xF0000 if code < 0x100000 else code - 0x100000 + 0xFFFE
