import json
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig
from rlhf_dist.errors import NumbersError, RlhfDistError, StorageError, WaitTimeout, WorkerDied, WorkerLost
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.stage_checkpoints import Reached


def run(path: Path, restarts: int, errors: list[RlhfDistError]) -> list[int]:
    """Steps at which each attempt began; attempts fail with the errors in turn, and then succeed."""
    config = SFTConfig(model="m", run_dir=str(path), restarts=restarts)
    began: list[int] = []

    def attempt(begin: Reached) -> list[int]:
        began.append(begin.step)
        if errors:
            raise errors.pop(0)
        return began

    folder = RunFolder(path, config, console=Console(), stage="sft")
    return restarting(config, folder, attempt, Reached(3), lambda: Reached(10 * len(began)))


def test_after_a_loss_it_goes_on_from_where_it_is_told_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = WorkerLost("learner-1 died while training: it was stopped\nall that Ray says")
    assert run(tmp_path, 2, [lost, WaitTimeout("learner-0: no answer")]) == [3, 10, 20]
    told = " ".join(capsys.readouterr().out.split())
    assert "learner-1 died while training: it was stopped. Going on after iteration 10, restart 1 of 2" in told
    assert "all that Ray says" not in told
    assert json.loads((tmp_path / "status.json").read_text())["restarts"] == 2


def test_it_is_given_up_after_so_many_restarts_and_at_once_for_what_would_only_happen_again(tmp_path: Path) -> None:
    errors: list[RlhfDistError] = [WorkerLost("first"), WorkerLost("second"), WorkerLost("third")]
    with pytest.raises(WorkerLost, match="second"):
        run(tmp_path, 1, errors)
    for kind in (WorkerDied, NumbersError, StorageError):
        with pytest.raises(kind):
            run(tmp_path, 3, [kind("x")])
