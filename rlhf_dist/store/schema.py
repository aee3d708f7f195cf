"""The Arrow schema of experience: one table of columns, each with its writer, unit and meaning.

Sequences are ragged and never padded. Only facts are stored; advantages are derived when a batch is taken, so stored
experience can be replayed under another algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlhf_dist.records import RowKey, Sample

SCHEMA_VERSION = 2


def _field(name: str, kind: pa.DataType, *, writer: str, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"writer": writer, "unit": unit, "meaning": meaning})


_FIELDS = [
    _field("iteration", pa.int64(), writer="rollout", unit="count", meaning="iteration that asked for the sample"),
    _field("prompt_id", pa.int64(), writer="rollout", unit="index", meaning="position of the prompt in the data set"),
    _field("sample_index", pa.int32(), writer="rollout", unit="index", meaning="which answer to this prompt"),
    _field("policy_version", pa.int64(), writer="rollout", unit="version", meaning="weights that generated the answer"),
    _field("prompt_tokens", pa.list_(pa.int32()), writer="rollout", unit="token id", meaning="the prompt"),
    _field(
        "response_tokens", pa.list_(pa.int32()), writer="rollout", unit="token id", meaning="the answer, end token in"
    ),
    _field(
        "rollout_log_probs",
        pa.list_(pa.float32()),
        writer="rollout",
        unit="nat",
        meaning="log-probability of each response token under the sampling distribution",
    ),
    _field("finish_reason", pa.string(), writer="rollout", unit="", meaning="stop, or length when cut"),
    _field(
        "score", pa.float32(), writer="reward", unit="reward", meaning="score of the whole answer, which PPO maximises"
    ),
    _field(
        "score_parts",
        pa.map_(pa.string(), pa.float32()),
        writer="reward",
        unit="reward",
        meaning="each reward's own score, before weights and caps; an ensemble's disagreement; broken rules (1)",
    ),
    _field(
        "ref_log_probs",
        pa.list_(pa.float32()),
        writer="reference",
        unit="nat",
        meaning="log-probability of each response token under the reference policy at the same temperature",
    ),
]

EXPERIENCE = pa.schema(_FIELDS, metadata={"schema": "rlhf_dist.experience", "version": str(SCHEMA_VERSION)})
"""Every column of a scored row."""

SCORERS = ("reward", "reference")
"""Writers that add a column to rows after the rollout."""


def written_by(writer: str) -> pa.Schema:
    """The columns that one writer adds."""
    fields = [field for field in EXPERIENCE if field.metadata[b"writer"].decode() == writer]
    return pa.schema(fields, metadata=EXPERIENCE.metadata)


ROLLOUT = written_by("rollout")


def rollout_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Finished samples as rows of the rollout's columns."""
    columns = {
        "iteration": [sample.key.iteration for sample in samples],
        "prompt_id": [sample.key.prompt_id for sample in samples],
        "sample_index": [sample.key.sample_index for sample in samples],
        "policy_version": [sample.policy_version for sample in samples],
        "prompt_tokens": [sample.prompt_tokens for sample in samples],
        "response_tokens": [sample.response_tokens for sample in samples],
        "rollout_log_probs": [sample.log_probs for sample in samples],
        "finish_reason": [sample.finish_reason for sample in samples],
    }
    return pa.RecordBatch.from_pydict(columns, schema=ROLLOUT)


def keys_of(batch: pa.RecordBatch) -> list[RowKey]:
    """The row keys of a rollout batch, in its order."""
    names = ("iteration", "prompt_id", "sample_index")
    return [RowKey(*row) for row in zip(*(batch.column(name).to_pylist() for name in names), strict=True)]


def lengths_of(batch: pa.RecordBatch) -> list[int]:
    """Prompt plus response tokens of each row."""
    prompts = batch.column("prompt_tokens").value_lengths().to_pylist()
    responses = batch.column("response_tokens").value_lengths().to_pylist()
    return [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
