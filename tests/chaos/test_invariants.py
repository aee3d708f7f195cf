"""Each invariant is broken once, and says so."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from rlhf_dist.chaos import invariants
from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.records import Prompt
from rlhf_dist.run_folder.names import experience_file
from rlhf_dist.store.kept import keep
from rlhf_dist.store.schema import EXPERIENCE

PROMPTS = PromptSampler([Prompt(number, (1, 2), "", "") for number in range(4)], batch=2, samples=2, seed=0)


def kept(path: Path, iteration: int, keys: list[tuple[int, int, int]]) -> None:
    empty = {str: "", bool: False}
    rows = []
    for key in keys:
        row = {field.name: [] if pa.types.is_nested(field.type) else 0 for field in EXPERIENCE}
        row |= dict(zip(("iteration", "prompt_id", "sample_index"), key, strict=True)) | {"finish_reason": empty[str]}
        rows.append(row)
    file = experience_file(path, iteration)
    file.parent.mkdir(parents=True, exist_ok=True)
    keep(file, pa.RecordBatch.from_pylist(rows, schema=EXPERIENCE))


def test_metrics() -> None:
    good = [{"iteration": number, "loss": 0.5} for number in range(3)]
    assert invariants.metrics_are_whole(good, 3) == []
    assert invariants.metrics_are_whole(good, 4) == [
        "metrics.jsonl: 3 rows, from row 3 on not iterations 0 to 3",
    ]
    assert "from row 1 on" in invariants.metrics_are_whole([good[0], *good])[0]
    (told,) = invariants.metrics_are_whole([{"iteration": 0, "loss": None, "critic/vf_explained_var": None}])
    assert told == "metrics.jsonl: loss of iteration 0 is None; expected a finite number"


def test_rows(tmp_path: Path) -> None:
    keys = [tuple(key) for task in PROMPTS.batch(0) for key in task.row_keys()]
    kept(tmp_path, 0, keys)
    assert invariants.rows_are_trained_once(tmp_path, PROMPTS, 1) == []
    assert invariants.rows_are_trained_once(tmp_path, PROMPTS, 2) == ["experience: iteration 1 is not there"]
    kept(tmp_path, 0, [*keys[:-1], keys[0]])
    twice, never = sorted(invariants.rows_are_trained_once(tmp_path, PROMPTS, 1), key=lambda told: "0 times" in told)
    assert f"row {keys[0]} is there 2 times, expected 1" in twice
    assert f"row {keys[-1]} is there 0 times, expected 1" in never


def test_checkpoints_policy_and_status(tmp_path: Path) -> None:
    for name in ("checkpoints/step-000001", "policy"):
        with complete_or_absent(tmp_path / name) as folder:
            save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    assert invariants.digests_are_true(tmp_path) == invariants.policy_is_finite(tmp_path) == []
    assert invariants.folder_is_tidy(tmp_path) == []
    save_file({"w": torch.tensor([1.0, torch.nan])}, tmp_path / "policy/model.safetensors")
    assert "changed since it was written" in invariants.digests_are_true(tmp_path)[0]
    assert "w has a number that is not finite" in invariants.policy_is_finite(tmp_path)[0]
    (tmp_path / ".x.partial").touch()
    (tmp_path / "status.json").write_text('{"state": "training"}')
    half, state = invariants.folder_is_tidy(tmp_path)
    assert "half written" in half
    assert "says 'training'" in state


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "SHM", tmp_path)
    (tmp_path / "old").touch()
    before = invariants.shared_memory()
    (tmp_path / "new").touch()
    assert invariants.shared_memory_is_free(before, patience_s=0) == [f"{tmp_path / 'new'}: left behind"]
    with (tmp_path / "new").open():
        assert invariants.shared_memory_is_free(before, patience_s=0) == [], "somebody has it open"
