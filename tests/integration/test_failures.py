"""What stops a run, and what it says: on the real parts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rlhf_dist.cluster.session import session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Cluster, Safety, dump
from rlhf_dist.errors import EnvironmentProblem, RewardError, WorkerDied
from rlhf_dist.records import PromptTask, RowKey, Sample
from rlhf_dist.run_folder.folder import claimed
from rlhf_dist.run_folder.lock import LOCK
from rlhf_dist.run_folder.status import read_status
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.store.actor import Store
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.row import rollout_batch
from tests.runs import Folders, log_lines, metrics, train

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_reward_that_is_not_finite_is_refused_and_names_the_sample(folders: Folders, tmp_path: Path) -> None:
    import ray

    broken = tmp_path / "reward"
    shutil.copytree(folders.reward, broken)
    (broken / "reward.json").write_text('{"std": 1e-320}')
    store = ray.remote(Store).remote(ExperienceIndex(batch_rows=1, scorers=("reward", "reference")))
    arguments = {
        "rewards": folders.config(reward=str(broken)).reward,
        "safety": Safety(),
        "tokenizer": str(folders.policy),
        "dtype": "float32",
        "batch_tokens": 512,
    }
    made = ray.remote(ScoringWorker).options(max_concurrency=2)
    worker = made.remote("reward-0", RewardScorer, arguments, threads=1, log_dir=str(tmp_path / "logs"))
    task, tokens = PromptTask(0, 7, (3, 4, 5), 1), (6, 7)
    sample = Sample(RowKey(0, 7, 0), task.tokens, tokens, (-1.0, -1.0), "stop", ((0, 2),))
    watch = Watch()
    watch.one("reward-0", worker.start.remote(), timeout_s=120, doing="starting")
    loop = worker.run.remote(store, False, 60)
    watch.then("reward-0", loop, lambda _: None, doing="running its loop")
    ray.get([store.submit.remote([task]), store.publish.remote(0, [], None)])
    assert ray.get(store.next_prompts.remote("rollout-0", 4, 60)) == [task]
    ray.get(store.append.remote("rollout-0", rollout_batch([sample])))
    with pytest.raises(
        RewardError, match=r"reward-0.*reward reward: it is -?inf; .* it is answer 0 to prompt 7 in iteration 0"
    ):
        watch.one("store", store.take.remote(0, 60), timeout_s=120, doing="waiting for scores")


def test_a_value_head_learns_and_a_killed_worker_that_may_not_be_replaced_ends_the_run_before_any_timeout(
    folders: Folders, tmp_path: Path
) -> None:
    """Tied embeddings, experts, the transformers engine and ZeRO-2 on the way."""
    config = folders.config(
        policy=str(folders.experts),
        rl={"iterations": 100000},
        learner={"critic": "value_head", "zero_stage": 2},
        rollout={"engine": "transformers", "max_restarts": 0},
        experience={"keep": False},
    )
    run = tmp_path / "unreplaced"

    def kill_when_it_has_learnt_twice() -> None:
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 2:
            time.sleep(0.1)
        os.kill(log_lines(run, "rollout-0")[0]["pid"], signal.SIGKILL)

    threading.Thread(target=kill_when_it_has_learnt_twice, daemon=True).start()
    with pytest.raises(WorkerDied, match="rollout-0 died"):
        train(config, run)
    rows = metrics(run)
    assert rows[0]["training/rollout_probs_diff_mean"] < 1e-5
    assert rows[1]["critic/vf_loss"] != rows[0]["critic/vf_loss"]


def runs(pid: int) -> bool:
    """Whether a process has not ended. One whose raylet ended before it stays in the table as this process's zombie:
    Ray made this process, in which a session lives, the parent of such orphans."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def holders(file: Path) -> set[int]:
    """Processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(file):
                found.add(int(link.parts[2]))
    return found


def test_sigterm_ends_a_run_in_order_and_says_how_to_go_on(folders: Folders, tmp_path: Path) -> None:
    """A method without a critic on the way."""
    config = folders.config(
        rl={"iterations": 100000},
        algorithm={"method": "rloo"},
        rollout={"engine": "transformers"},
        experience={"keep": False},
        checkpoint_every=1,
    )
    file, run = tmp_path / "rl.yaml", tmp_path / "terminated"
    file.write_text(dump(config))
    command = [sys.executable, "-m", "rlhf_dist.cli", "rl", str(file), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list((run / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert read_status(run)["state"] == "training"
    with (
        pytest.raises(EnvironmentProblem, match=f"{run}: process {process.pid} on "),
        claimed(str(run), explicit=True, resume=True),
    ):
        pass
    assert holders(run / LOCK) == {process.pid}, "Ray's processes would keep it after the driver was killed"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    last = said.splitlines()[-1]
    newest = max((run / "checkpoints").glob("step-*/learner")).parent
    assert last.startswith(f"stopped by SIGTERM; the newest checkpoint is {newest}. To go on: rlhf-dist rl {file}")
    assert last.endswith(f"--run-dir {run} --resume")
    assert "PC: @" not in said
    assert "Traceback" not in said
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    row = metrics(run)[0]
    assert row["actor/grad_norm"] > 0
    assert not [name for name in row if name.startswith(("critic/v", "critic/grad_norm", "critic/returns"))]
    assert not (newest / "critic").exists()
    actors = {log_lines(run, file.stem)[0]["pid"] for file in (run / "logs").glob("*.jsonl")}
    deadline = time.monotonic() + 60
    while left := [pid for pid in actors if runs(pid)]:
        assert time.monotonic() < deadline, f"{left} outlive their run"
        time.sleep(0.1)


OWN_SESSION = """
import socket, subprocess
from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem

with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    try:
        with session(Cluster(dashboard=True, dashboard_port=port), cpus=1, gpus=0, namespace="test"):
            print("started")
    except EnvironmentProblem as error:
        assert f"cluster.dashboard_port {port} is busy" in str(error), error
        print("refused")
with session(Cluster(), cpus=1, gpus=0, namespace="test"):
    print(subprocess.run(["false"], check=False).returncode)
print(subprocess.run(["false"], check=False).returncode)
"""


def test_a_busy_dashboard_port_is_named_before_ray_starts_and_exit_codes_are_seen_while_it_runs_and_afterwards() -> (
    None
):
    done = subprocess.run([sys.executable, "-c", OWN_SESSION], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused", "1", "1"], done.stderr


def test_a_space_in_pythons_path_is_named_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/some where/python")
    with (
        pytest.raises(EnvironmentProblem, match="/some where/python: there is a space"),
        session(Cluster(), cpus=1, gpus=0, namespace="test"),
    ):
        pass
