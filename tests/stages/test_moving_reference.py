from pathlib import Path

import pytest
import torch

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.errors import ModelError
from rlhf_dist.models import load_policy
from rlhf_dist.stages.moving_reference import mixed, prune, reference_at, references
from tests.runs import Folders


def made(run: Path, step: int) -> Path:
    folder = run / "references" / f"step-{step:06d}"
    with complete_or_absent(folder) as aside:
        (aside / "config.json").write_text(str(step))
    return folder


def test_a_run_goes_on_with_the_newest_reference_that_was_made_up_to_then(tmp_path: Path) -> None:
    assert reference_at(tmp_path, 9, "start") == "start"
    second, fourth = made(tmp_path, 2), made(tmp_path, 4)
    (tmp_path / "references" / "step-000004.bak").mkdir()
    assert [*references(tmp_path)] == [4, 2]
    found = [reference_at(tmp_path, iteration, "start") for iteration in (1, 2, 3, 4, 9)]
    assert found == ["start", *map(str, (second, second, fourth, fourth))]
    (fourth / "config.json").write_text("changed")
    with pytest.raises(ModelError, match="missing or changed since it was written"):
        reference_at(tmp_path, 4, "start")


def test_references_stay_that_checkpoints_or_the_last_moments_go_on_with(tmp_path: Path) -> None:
    for step in range(1, 8):
        made(tmp_path, step)
    prune(tmp_path, kept=[3])
    assert [*references(tmp_path)] == [7, 6, 3]
    prune(tmp_path, kept=[])
    assert [*references(tmp_path)] == [7, 6]


def test_a_moving_average_is_that_of_the_weights(folders: Folders, tmp_path: Path) -> None:
    old, new = (load_policy(str(folders.policy), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1.0)
    new.save_pretrained(tmp_path / "policy")
    mixed(str(folders.policy), tmp_path / "policy", mix=0.25)
    found = load_policy(str(tmp_path / "policy"), dtype=torch.float32)
    for a, b in zip(found.parameters(), old.parameters(), strict=True):
        torch.testing.assert_close(a, b + 0.25)
