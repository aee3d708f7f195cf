import pyarrow as pa

from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView, Slice
from rlhf_dist.store.reader import read_batch
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import EXPERIENCE, ROLLOUT, written_by
from tests.store.test_row import samples


def test_every_column_has_one_writer_a_unit_and_a_meaning() -> None:
    for field in EXPERIENCE:
        assert set(field.metadata) == {b"writer", b"unit", b"meaning"}, field.name
    assert sum(len(written_by(writer)) for writer in ("rollout", "reward", "reference")) == len(EXPERIENCE)


def scored_blocks() -> dict[str, pa.RecordBatch]:
    told = {"score": [10.0, 11.0, 12.0], "score_parts": [[("gold", float(n))] for n in range(3)]}
    rewards = pa.RecordBatch.from_pydict(told, schema=written_by("reward"))
    refs = pa.RecordBatch.from_pydict({"ref_log_probs": [[-1.0], [-2.0]]}, schema=written_by("reference"))
    return {"x": rollout_batch(samples()), "r": rewards, "f": refs}


def test_rows_are_assembled_from_the_blocks_of_their_writers_in_the_order_asked_for() -> None:
    views = [
        RowView(RowKey(0, i, 0), 4, {"rollout": Slice("x", i), "reward": Slice("r", 2 - i), "reference": Slice("f", i)})
        for i in (1, 0)
    ]
    batch = read_batch(views, scored_blocks())
    assert batch.schema.equals(EXPERIENCE)
    assert batch.column("prompt_id").to_pylist() == [1, 0]
    assert batch.column("score").to_pylist() == [11.0, 12.0]
    assert batch.column("score_parts").to_pylist() == [[("gold", 1.0)], [("gold", 2.0)]]
    assert batch.column("ref_log_probs").to_pylist() == [[-2.0], [-1.0]]


def test_rows_without_a_writers_columns_are_assembled_without_them() -> None:
    views = [RowView(RowKey(0, 0, 0), 4, {"rollout": Slice("x", 0), "reward": Slice("r", 0)})]
    assert read_batch(views, scored_blocks()).schema.names == [*ROLLOUT.names, "score", "score_parts"]
