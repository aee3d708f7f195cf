"""A row as everybody reads it: the rollout writes it; reference, reward model and learner ask it what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rlhf_dist.records import Sample
from rlhf_dist.store.schema import ROLLOUT

Array = np.ndarray[Any, Any]


class Row(NamedTuple):
    """The tokens of one sample. Only those that the policy sampled are learnt; the others are prompt or environment."""

    tokens: Array
    """int32 [length]."""
    sampled: Array
    """bool [length]."""
    versions: tuple[tuple[int, int], ...]
    """Spans (weight version, tokens) over the sampled tokens, in order."""
    rewards: tuple[tuple[int, float], ...]
    """(position, reward) of what came while it was sampled, beside the score of the whole."""

    @property
    def positions(self) -> Array:
        """Positions of the sampled tokens, int64 [sampled]."""
        return np.flatnonzero(self.sampled)

    @property
    def predicting(self) -> Array:
        """Positions whose output predicts the sampled tokens, int64 [sampled]; also the states before each of them."""
        return self.positions - 1

    @property
    def prompt(self) -> Array:
        """What came before the first sampled token."""
        return self.tokens[: self._begin]

    @property
    def answer(self) -> Array:
        """Everything from the first sampled token on, what an environment said in between included."""
        return self.tokens[self._begin :]

    def token_rewards(self, score: float) -> Array:
        """Reward received with each sampled token, float32 [sampled]: the row's own, and the score with the last.

        A reward at a position goes to the last token sampled up to it; one that came before any, to the first.
        """
        found = np.zeros(int(self.sampled.sum()), dtype=np.float32)
        for position, reward in self.rewards:
            found[max(0, int(self.sampled[: position + 1].sum()) - 1)] += reward
        found[-1] += score
        return found

    @property
    def _begin(self) -> int:
        return int(np.argmax(self.sampled)) if self.sampled.any() else len(self.tokens)


def single_turn(prompt: Sequence[int], answer: Sequence[int], versions: Sequence[tuple[int, int]] = ()) -> Row:
    """The row of one prompt and one sampled answer."""
    tokens = np.asarray([*prompt, *answer], dtype=np.int32)
    return Row(tokens, np.arange(len(tokens)) >= len(prompt), tuple(versions), ())


def rollout_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Finished samples as rows of the rollout's columns (`store.schema.ROLLOUT`)."""
    rows = [single_turn(sample.prompt_tokens, sample.response_tokens, sample.versions) for sample in samples]
    columns = {
        "iteration": [sample.key.iteration for sample in samples],
        "prompt_id": [sample.key.prompt_id for sample in samples],
        "sample_index": [sample.key.sample_index for sample in samples],
        "tokens": [row.tokens for row in rows],
        "sampled": [row.sampled for row in rows],
        "weight_versions": [[{"version": version, "tokens": count} for version, count in row.versions] for row in rows],
        "rollout_log_probs": [sample.log_probs for sample in samples],
        "rewards": [[{"position": position, "reward": reward} for position, reward in row.rewards] for row in rows],
        "finish_reason": [sample.finish_reason for sample in samples],
    }
    return pa.RecordBatch.from_pydict(columns, schema=ROLLOUT)


def row_of(batch: pa.RecordBatch, index: int) -> Row:
    """One row of a batch that has the rollout's columns."""
    return Row(
        tokens=batch.column("tokens")[index].values.to_numpy(),
        sampled=batch.column("sampled")[index].values.to_numpy(zero_copy_only=False),
        versions=tuple((span["version"], span["tokens"]) for span in batch.column("weight_versions")[index].as_py()),
        rewards=tuple((each["position"], each["reward"]) for each in batch.column("rewards")[index].as_py()),
    )


def rows_of(batch: pa.RecordBatch) -> list[Row]:
    """All rows of a batch, in its order."""
    return [row_of(batch, index) for index in range(batch.num_rows)]


class Extents(NamedTuple):
    """Of every row of a batch at once, int64 [rows] each."""

    prompt: Array
    """Tokens before the first sampled one."""
    sampled: Array
    """Tokens that the policy sampled."""
    whole: Array
    """All tokens."""
    oldest: Array
    """Oldest weight version that sampled any of them."""


def extents_of(batch: pa.RecordBatch) -> Extents:
    """What `Row` says of lengths and versions, without a loop over rows; each has a sampled token."""
    sampled, spans = batch.column("sampled"), batch.column("weight_versions")
    whole = sampled.value_lengths().to_numpy()
    starts = np.cumsum(whole) - whole
    flags = sampled.flatten().to_numpy(zero_copy_only=False)
    places = np.arange(len(flags)) - np.repeat(starts, whole)
    counts = spans.value_lengths().to_numpy()
    versions = spans.flatten().field("version").to_numpy()
    return Extents(
        prompt=np.minimum.reduceat(np.where(flags, places, len(flags)), starts),
        sampled=np.add.reduceat(flags.astype(np.int64), starts),
        whole=whole.astype(np.int64),
        oldest=np.minimum.reduceat(versions, np.cumsum(counts) - counts),
    )
