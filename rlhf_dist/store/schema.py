"""The Arrow schema of experience: one table of columns, each with its writer, unit and meaning.

Sequences are ragged and never padded. Only facts are stored; advantages are derived when a batch is taken, so stored
experience can be replayed under another algorithm.
"""

from __future__ import annotations

import pyarrow as pa

from rlhf_dist.records import RowKey

SCHEMA_VERSION = 3
ROLLOUT_WRITER = "rollout"
"""Who writes a row; others add columns to it."""


def _field(name: str, kind: pa.DataType, *, writer: str, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"writer": writer, "unit": unit, "meaning": meaning})


_FIELDS = [
    _field("iteration", pa.int64(), writer=ROLLOUT_WRITER, unit="count", meaning="iteration that asked for the sample"),
    _field(
        "prompt_id", pa.int64(), writer=ROLLOUT_WRITER, unit="index", meaning="position of the prompt in the data set"
    ),
    _field("sample_index", pa.int32(), writer=ROLLOUT_WRITER, unit="index", meaning="which answer to this prompt"),
    _field(
        "tokens",
        pa.list_(pa.int32()),
        writer=ROLLOUT_WRITER,
        unit="token id",
        meaning="prompt and answer, end token in",
    ),
    _field(
        "sampled",
        pa.list_(pa.bool_()),
        writer=ROLLOUT_WRITER,
        unit="",
        meaning="of each token, whether the policy sampled it",
    ),
    _field(
        "weight_versions",
        pa.list_(pa.struct([pa.field("version", pa.int64(), False), pa.field("tokens", pa.int32(), False)])),
        writer=ROLLOUT_WRITER,
        unit="version",
        meaning="weights that sampled the tokens: spans of the sampled tokens, in order",
    ),
    _field(
        "rollout_log_probs",
        pa.list_(pa.float32()),
        writer=ROLLOUT_WRITER,
        unit="nat",
        meaning="log-probability of each sampled token under the sampling distribution",
    ),
    _field(
        "rewards",
        pa.list_(pa.struct([pa.field("position", pa.int32(), False), pa.field("reward", pa.float32(), False)])),
        writer=ROLLOUT_WRITER,
        unit="reward",
        meaning="rewards received at positions of the row while it was sampled, beside the score of the whole",
    ),
    _field("finish_reason", pa.string(), writer=ROLLOUT_WRITER, unit="", meaning="stop, or length when cut"),
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
        meaning="log-probability of each sampled token under the reference policy at the same temperature",
    ),
    _field(
        "teacher_log_probs",
        pa.list_(pa.float32()),
        writer="teacher",
        unit="nat",
        meaning="log-probability of each sampled token under the teacher, where there is one",
    ),
]

_METADATA = {"schema": "rlhf_dist.experience", "version": str(SCHEMA_VERSION)}
COLUMNS = pa.schema(_FIELDS, metadata=_METADATA)
"""Every column that a scored row may have; it has those of the writers that its run has."""
EXPERIENCE = pa.schema([field for field in _FIELDS if field.name != "teacher_log_probs"], metadata=_METADATA)
"""Those of a run without a teacher."""


def writer_of(field: pa.Field) -> str:
    """Who writes a column of `COLUMNS`."""
    name: str = field.metadata[b"writer"].decode()
    return name


def written_by(writer: str) -> pa.Schema:
    """The columns that one writer adds."""
    fields = [field for field in COLUMNS if writer_of(field) == writer]
    return pa.schema(fields, metadata=COLUMNS.metadata)


ROLLOUT = written_by(ROLLOUT_WRITER)


def keys_of(batch: pa.RecordBatch) -> list[RowKey]:
    """The row keys of a rollout batch, in its order."""
    names = ("iteration", "prompt_id", "sample_index")
    return [RowKey(*row) for row in zip(*(batch.column(name).to_pylist() for name in names), strict=True)]


def lengths_of(batch: pa.RecordBatch) -> list[int]:
    """Tokens of each row, prompt and answer together."""
    lengths: list[int] = batch.column("tokens").value_lengths().to_pylist()
    return lengths
