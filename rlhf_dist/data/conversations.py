"""A chat as people read it: who says what, without a template's text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_dist.files import as_json


class Said(NamedTuple):
    """One message of a chat."""

    role: str
    """`user`, `assistant`, `system`, `tool` or what a template knows besides; `tools`: those that may be called."""
    text: str
    name: str = ""

    @property
    def speaker(self) -> str:
        """Who says it, for people."""
        return f"{self.role.capitalize()} ({self.name})" if self.name else self.role.capitalize()


def turns(columns: Mapping[str, Any]) -> list[Said]:
    """The chat that a prompt's columns hold, the tools that it may call first; none for a prompt that is text.

    Args:
        columns: of feedback, as `records.Prompt.source` has them: `prompt_messages`, `tools`.
    """
    messages = columns.get("prompt_messages") or []
    offered = [_offered(tool) for tool in columns.get("tools") or []] if messages else []
    said = [_said(message) for message in messages if isinstance(message, Mapping)]
    return [*([Said("tools", "\n".join(offered))] if offered else []), *(one for one in said if one.text)]


def spoken_text(said: Iterable[Said]) -> str:
    """A chat as text, a paragraph for each message that begins with who says it."""
    return "\n\n".join(f"{one.speaker}: {one.text}" for one in said)


def _said(message: Mapping[str, Any]) -> Said:
    content = message.get("content")
    parts: Sequence[Any] = content if isinstance(content, list) else [content]
    said = "".join(map(_part, parts)).strip()
    calls = message.get("tool_calls") or []
    name = message.get("name")
    return Said(str(message.get("role", "")), "\n".join(filter(None, [said, *map(_call, calls)])), str(name or ""))


def _part(part: Any) -> str:
    """A content, or a part of one: its text, or what else it is as JSON."""
    if part is None or isinstance(part, str):
        return part or ""
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else _readable(part)


def _call(call: Any) -> str:
    """A call of a tool as `name(arguments)`, else as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return _readable(call)
    return f"{function['name']}({_readable(function.get('arguments') or {})})"


def _offered(tool: Any) -> str:
    """A tool as `name: what it does`, else as JSON."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return _readable(tool)
    name = str(function["name"])
    return f"{name}: {function['description']}" if function.get("description") else name


def _readable(value: Any) -> str:
    """JSON as people read it; text that is JSON already, such as a call's arguments, is not quoted again."""
    if not isinstance(value, str):
        return as_json(value, ensure_ascii=False)
    try:
        return as_json(json.loads(value), ensure_ascii=False)
    except (ValueError, RecursionError):
        return value
