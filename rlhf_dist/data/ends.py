"""Which tokens end an answer, as a tokenizer and its chat template say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_dist.data.templates import PLAIN, RENDER_ERRORS, Reading, apply_template

_PROBE = "harmless words"
"""What the assistant says where a template is asked how it ends a turn."""


@dataclass(frozen=True)
class Ends:
    """The tokens that end answers; everything that teaches, reads or generates an end asks here."""

    ids: tuple[int, ...]
    """All at which an engine stops."""
    chat: int | None
    """What ends an assistant's turn as the chat template renders it; None: it ends in nothing, or there is no template."""
    text: int
    """What ends an answer to plain text: the tokenizer's eos."""

    @property
    def of_chat(self) -> int:
        """What ends an answer to chat messages: where the template teaches nothing, the same as after plain text."""
        return self.text if self.chat is None else self.chat

    def also(self, ids: Iterable[int]) -> Ends:
        """The same, and the engine stops at some more."""
        return Ends(tuple(dict.fromkeys([*ids, *self.ids])), self.chat, self.text)


def tokenizer_ends(tokenizer: Any) -> Ends:
    """The ends that a tokenizer knows of by itself; what a model's folder adds: `models.ends_of`."""
    chat = template_end(tokenizer)
    eos = int(tokenizer.eos_token_id)
    return Ends((eos,) if chat in (None, eos) else (eos, chat), chat, eos)


def template_end(tokenizer: Any, reading: Reading = PLAIN) -> int | None:
    """The added token that the chat template puts right after what the assistant says; None if it puts none there.

    Args:
        tokenizer: with the template.
        reading: what else the template gets, without which some refuse to render, or render otherwise.
    """
    added = added_tokens(tokenizer)
    for text in _probes(tokenizer, reading):
        before, found, after = text.rpartition(_PROBE)
        if not found or not before or not added:
            continue
        first = pattern_of(added).search(after)
        if first is not None and not after[: first.start()].strip():
            return added[first[0]]
    return None


def takes_probes(tokenizer: Any, reading: Reading = PLAIN) -> bool:
    """Whether a template renders any of the chats by which it is asked how it ends a turn."""
    return any(True for _ in _probes(tokenizer, reading))


def _probes(tokenizer: Any, reading: Reading) -> Iterator[str]:
    """A question with its answer as the template renders it, behind a system message too, as far as it takes them."""
    if not getattr(tokenizer, "chat_template", None):
        return
    for roles in (("user", "assistant"), ("system", "user", "assistant")):
        for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
            messages = [{"role": role, "content": content} for role in roles]
            try:
                yield apply_template(tokenizer, messages, ask=False, reading=reading)
            except RENDER_ERRORS:
                continue


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Text to id of every token that stands outside the ordinary vocabulary."""
    return {str(token.content): number for number, token in _decoder(tokenizer).items()}


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text to id of those that steer the model, which a text must not spell by accident."""
    return {str(token.content): number for number, token in _decoder(tokenizer).items() if token.special}


def tokens_that_eat_spaces(tokenizer: Any) -> tuple[str, ...]:
    """Added tokens that swallow the white space after them, as Phi-3's do."""
    return tuple(str(token.content) for token in _decoder(tokenizer).values() if token.rstrip)


def pattern_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of some texts, the longest that fits."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _decoder(tokenizer: Any) -> Mapping[int, Any]:
    found: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return found
