"""What travels between the parts: plain, small, frozen values. Bulk data travels as Arrow (`store/schema.py`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

GREEDY = -1
"""Sample index of the greedy answer to a prompt, where one is the baseline: it is scored, and not learnt from."""


class RowKey(NamedTuple):
    """Names one sample for the whole run. Sorting by it gives the canonical order of a batch."""

    iteration: int
    prompt_id: int
    sample_index: int

    def __str__(self) -> str:
        """As people call it."""
        return f"answer {self.sample_index} to prompt {self.prompt_id} in iteration {self.iteration}"


class Failure(NamedTuple):
    """Why a sample has no score."""

    reward: str
    """Name of the reward that failed."""
    cause: str
    prompt: str
    answer: str

    def __str__(self) -> str:
        """For people."""
        return f"reward {self.reward}: {self.cause}, on prompt {self.prompt!r} and answer {self.answer!r}"


class RowTold(NamedTuple):
    """What functions that score are told of a prompt's row, each as JSON; empty: nothing."""

    columns: str = ""
    """`Prompt.columns`."""
    source: str = ""
    """`Prompt.source`, which has the messages of a chat as `prompt_messages`."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of the data set."""

    id: int
    """Position in the data set."""
    tokens: tuple[int, ...]
    text: str
    """What the tokens say, a template's text in: judges and rewards are given this."""
    source: str = ""
    """As JSON, the columns of feedback from which the tokens are made again; empty: from the text."""
    spoken: str = ""
    """The text as people read it, where that is another: without a template's text."""
    columns: str = ""
    """As JSON, the row's other columns by name, which functions that score may ask for; empty: there are none."""

    @property
    def shown(self) -> str:
        """What people are shown."""
        return self.spoken or self.text

    @property
    def told(self) -> RowTold:
        """What functions that score are told beside prompt and answer."""
        return RowTold(self.columns, self.source)


@dataclass(frozen=True)
class PromptTask:
    """A prompt that waits for `samples` answers in one iteration."""

    iteration: int
    prompt_id: int
    tokens: tuple[int, ...]
    samples: int
    first_sample: int = 0

    def row_keys(self) -> list[RowKey]:
        """The rows that this task becomes."""
        indices = range(self.first_sample, self.first_sample + self.samples)
        return [RowKey(self.iteration, self.prompt_id, index) for index in indices]


@dataclass(frozen=True)
class Sampling:
    """The distribution that answers are drawn from, and where they end."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class SampleRequest:
    """One answer to generate."""

    key: RowKey
    prompt_tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Sample:
    """One finished answer."""

    key: RowKey
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Log-probability of each response token under the distribution it was drawn from, in nats."""
    finish_reason: str
    """`stop`: an end token or stop string; `length`: cut at max_new_tokens."""
    versions: tuple[tuple[int, int], ...]
    """Spans (weight version, tokens) over the response tokens, in order."""


def sample_seed(run_seed: int, key: RowKey) -> int:
    """A 63-bit seed that depends on nothing but its arguments, so workers and their order change no sample."""
    text = f"{run_seed}/{key.iteration}/{key.prompt_id}/{key.sample_index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
