"""Finished answers as rewards see them: tokens, and text where a reward reads text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from rlhf_dist.store.row import Row


@dataclass(frozen=True)
class Answers:
    """Some rows of a batch."""

    rows: Sequence[Row]
    tokenizer: Any

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and answer as text, without special tokens."""
        return [(self._decoded(row.prompt), self._decoded(row.answer)) for row in self.rows]

    def _decoded(self, tokens: Any) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class Component(Protocol):
    """One of the rewards that are added up."""

    name: str

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """The component's own values under its name, and whatever else is worth logging of each answer."""
