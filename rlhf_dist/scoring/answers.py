"""Finished answers as rewards see them: tokens, and text where a reward reads text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol


@dataclass(frozen=True)
class Answers:
    """Some rows of a batch."""

    prompts: Sequence[Any]
    """Token ids of each prompt, numpy int32."""
    responses: Sequence[Any]
    """Token ids of each answer, the end token in if it came."""
    tokenizer: Any

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and answer as text, without special tokens."""
        return [*zip(*(self._decoded(each) for each in (self.prompts, self.responses)), strict=True)]

    def _decoded(self, tokens: Sequence[Any]) -> list[str]:
        return [self.tokenizer.decode(each, skip_special_tokens=True) for each in tokens]


class Component(Protocol):
    """One of the rewards that are added up."""

    name: str

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """The component's own values under its name, and whatever else is worth logging of each answer."""
