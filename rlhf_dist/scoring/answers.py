"""Finished answers as rewards see them: tokens, and text where a reward reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from rlhf_dist.errors import RewardError
from rlhf_dist.records import Failure, RowKey, RowTold
from rlhf_dist.scoring.told import ToldOf
from rlhf_dist.secrets import masked
from rlhf_dist.store.row import Row

LONGEST_PASSAGE = 2_000
"""Characters of a prompt or answer in a message."""


def passage(text: str) -> str:
    """A text as messages and files of failures have it, however long it is."""
    return text if len(text) <= LONGEST_PASSAGE else text[:LONGEST_PASSAGE] + "..."


@dataclass
class Failures:
    """Samples of a chunk that have no score, and why."""

    allowed: int = 0
    """Most of them; one more is an error."""
    keys: Sequence[RowKey] = ()
    """Of the chunk's rows, where they have any."""
    causes: dict[int, Failure] = field(default_factory=dict)
    """By position in the chunk; of several rewards that fail, the first's."""

    def add(self, number: int, failure: Failure) -> None:
        """One more.

        Raises:
            RewardError: it is one too many; names it.
        """
        self.causes.setdefault(number, failure)
        if len(self.causes) > self.allowed:
            raise RewardError(told(failure, self.keys[number] if self.keys else None))


def told(failure: Failure, key: RowKey | None) -> str:
    """A failure for people, with the sample's place in the run."""
    if key is None:
        return str(failure)
    return f"{failure}; it is answer {key.sample_index} to prompt {key.prompt_id} in iteration {key.iteration}"


@dataclass(frozen=True)
class Answers:
    """Some rows of a batch."""

    rows: Sequence[Row]
    tokenizer: Any
    failures: Failures = field(default_factory=Failures)
    rows_told: ToldOf | None = None
    """What is told of prompts, if some reward asks for it."""

    @cached_property
    def told(self) -> list[RowTold]:
        """Of each answer, what is told of its prompt's row."""
        keys = self.failures.keys
        if self.rows_told is None or not keys:
            return [RowTold()] * len(self.rows)
        return self.rows_told.of([key.prompt_id for key in keys])

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and answer as text, without special tokens."""
        return [(self._decoded(row.prompt), self._decoded(row.answer)) for row in self.rows]

    def fail(self, number: int, reward: str, cause: str) -> None:
        """Say that a reward has no number for an answer.

        Raises:
            RewardError: so many may not fail.
        """
        prompt, answer = self.texts[number]
        self.failures.add(number, Failure(reward, masked(cause), passage(prompt), passage(answer)))

    def _decoded(self, tokens: Any) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class Component(Protocol):
    """One of the rewards that are added up."""

    name: str

    def score(self, answers: Answers) -> Mapping[str, Sequence[float | None]]:
        """The component's own values under its name, and whatever else is worth logging of each answer.

        Where there is no number for an answer, it says so by `Answers.fail`, and NaN; None says that the component has nothing to
        say of such an answer, which is no failure.
        """
