"""Experience of every version of the schema, as files that were written by it."""

from pathlib import Path

import pyarrow as pa
import pytest

from rlhf_dist.errors import DataError
from rlhf_dist.store.kept import keep, read_kept
from rlhf_dist.store.row import rollout_batch, rows_of
from rlhf_dist.store.schema import EXPERIENCE
from tests.store.test_row import samples

VERSION_2 = Path(__file__).parent / "experience-v2.arrow"
"""Three rows that a run kept before rows had spans of versions."""


def write(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def old() -> pa.Table:
    return pa.ipc.open_file(VERSION_2).read_all()


def test_what_is_kept_today_is_read_as_it_is(tmp_path: Path) -> None:
    batch = rollout_batch(samples())
    keep(tmp_path / "iteration=000000" / "batch.arrow", batch)
    assert read_kept(tmp_path / "iteration=000000" / "batch.arrow").to_batches() == [batch]


def test_rows_of_version_2_are_joined_and_their_version_is_one_span() -> None:
    kept, found = old().to_pylist(), read_kept(VERSION_2)
    assert found.schema.equals(EXPERIENCE, check_metadata=True)
    for before, after, row in zip(
        kept, found.to_pylist(), rows_of(found.combine_chunks().to_batches()[0]), strict=True
    ):
        assert row.prompt.tolist() == before["prompt_tokens"]
        assert row.answer.tolist() == before["response_tokens"]
        assert row.versions == ((before["policy_version"], len(before["response_tokens"])),)
        for name in ("score", "score_parts", "ref_log_probs", "rollout_log_probs", "finish_reason", "prompt_id"):
            assert after[name] == before[name]


def test_rows_of_version_1_have_no_parts_of_their_score(tmp_path: Path) -> None:
    first = old().drop_columns("score_parts")
    first = first.replace_schema_metadata({**first.schema.metadata, b"version": b"1"})
    found = read_kept(write(tmp_path / "first.arrow", first))
    assert found.schema.equals(EXPERIENCE)
    assert found["score_parts"].to_pylist() == [[], [], []]


def test_what_cannot_be_read_is_refused_with_file_and_version(tmp_path: Path) -> None:
    later = old().replace_schema_metadata({"schema": "rlhf_dist.experience", "version": "99"})
    with pytest.raises(DataError, match=r"later.arrow: schema rlhf_dist.experience, version 99; expected .* 3 at most"):
        read_kept(write(tmp_path / "later.arrow", later))
    with pytest.raises(DataError, match=r"other.arrow: schema none, version 0; expected rlhf_dist.experience"):
        read_kept(write(tmp_path / "other.arrow", pa.table({"a": [1]})))
    (tmp_path / "torn.arrow").write_bytes(VERSION_2.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"torn.arrow: not a readable Arrow file"):
        read_kept(tmp_path / "torn.arrow")
