"""Experience in files: whatever version of this package wrote it, it is read under today's schema."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from rlhf_dist.errors import DataError
from rlhf_dist.files import written_aside
from rlhf_dist.store.schema import EXPERIENCE, SCHEMA_VERSION


def keep(path: Path, batch: pa.RecordBatch) -> None:
    """Write rows as an Arrow file, whole or not at all."""
    with (
        written_aside(path) as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_kept(path: Path) -> pa.Table:
    """Rows that `keep` wrote, with those of today's columns (`store.schema.EXPERIENCE`) that the file can know.

    Raises:
        DataError: it is no experience, or of a later version than this package knows.
    """
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file: {error}") from error
    return _upgraded(table, path)


def _upgraded(table: pa.Table, path: Path) -> pa.Table:
    """Version 1 had no `score_parts`; until version 2, prompt and answer were two columns with one `policy_version`."""
    metadata = table.schema.metadata or {}
    version = int(metadata.get(b"version", b"0"))
    if metadata.get(b"schema") != EXPERIENCE.metadata[b"schema"] or version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema {metadata.get(b'schema', b'none').decode()}, version {version}; expected rlhf_dist.experience of "
            f"version {SCHEMA_VERSION} at most"
        )
    if version < 3:
        table = _joined(table)
    if version < 2 and "score" in table.schema.names:
        none = pa.array([[]] * table.num_rows, EXPERIENCE.field("score_parts").type)
        table = table.append_column("score_parts", none)
    fields = [field for field in EXPERIENCE if field.name in table.schema.names]
    return table.select([field.name for field in fields]).cast(pa.schema(fields, metadata=EXPERIENCE.metadata))


def _joined(table: pa.Table) -> pa.Table:
    """Version 2's prompt, answer and policy version as version 3's row."""
    prompts, answers = (table[name].to_pylist() for name in ("prompt_tokens", "response_tokens"))
    pairs = list(zip(prompts, answers, strict=True))
    columns = {
        "tokens": [prompt + answer for prompt, answer in pairs],
        "sampled": [[False] * len(prompt) + [True] * len(answer) for prompt, answer in pairs],
        "weight_versions": [
            [{"version": version, "tokens": len(answer)}]
            for version, answer in zip(table["policy_version"].to_pylist(), answers, strict=True)
        ],
        "rewards": [[] for _ in pairs],
    }
    for name, values in columns.items():
        table = table.append_column(EXPERIENCE.field(name), pa.array(values, EXPERIENCE.field(name).type))
    return table
