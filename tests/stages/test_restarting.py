import json
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig
from rlhf_dist.errors import (
    ClusterLost,
    EnvironmentProblem,
    NumbersError,
    RlhfDistError,
    StorageError,
    WaitTimeout,
    WorkerDied,
    WorkerLost,
)
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


def test_a_cluster_of_our_own_that_dies_is_started_anew_and_anothers_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real Ray: chaos in tests/integration/test_chaos.py."""
    states: list[str] = []

    def started(ours: bool) -> bool:
        states.append(json.loads((tmp_path / "status.json").read_text())["state"])
        return ours

    monkeypatch.setattr("rlhf_dist.stages.restarting.start_anew", lambda: started(True))
    assert run(tmp_path, 1, [ClusterLost("Ray's raylet died while learning")]) == [3, 10]
    assert states == ["restarting"], "it is said before a new one is started"
    with pytest.raises(ClusterLost, match=r"^Ray's raylet died$"):
        run(tmp_path, 0, [ClusterLost("Ray's raylet died")])
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed", "at once, before Ray has ended"
    monkeypatch.setattr("rlhf_dist.stages.restarting.start_anew", lambda: started(False))
    with pytest.raises(ClusterLost, match=r"^Ray's head node is gone$"):
        run(tmp_path, 3, [ClusterLost("Ray's head node is gone")])
    assert json.loads((tmp_path / "status.json").read_text())["error"] == "ClusterLost: Ray's head node is gone"

    def refuse() -> bool:
        raise EnvironmentProblem("Ray did not start on this machine: no space left")

    monkeypatch.setattr("rlhf_dist.stages.restarting.start_anew", refuse)
    with pytest.raises(ClusterLost, match="^Ray's raylet died, and a new cluster cannot be started: Ray did not start"):
        run(tmp_path, 3, [ClusterLost("Ray's raylet died")])
