"""What stops a run, and what it says: on the real parts."""

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_dist.cluster.session import check_port_free, session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem, RewardError, WaitTimeout, WorkerDied
from tests.integration.runs import Folders, train


def test_a_reward_that_is_nan_stops_the_run_and_names_the_sample(folders: Folders, tmp_path: Path) -> None:
    broken = tmp_path / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(folders.reward)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    for file in folders.reward.glob("token*"):
        (broken / file.name).write_bytes(file.read_bytes())
    config = folders.config(reward=str(broken), critic=str(folders.reward), rollout={"engine": "transformers"})
    with pytest.raises(RewardError, match=r"reward-0.*reward gave score nan for prompt \d+, answer \d+, iteration 0"):
        train(config, tmp_path / "run")


def test_no_room_for_the_kv_cache_names_the_settings(folders: Folders, tmp_path: Path) -> None:
    config = folders.config(rollout={"kv_cache_gib": 1e-6})
    with pytest.raises(EnvironmentProblem, match=r"KV cache(.|\n)*rollout.kv_cache_gib"):
        train(config, tmp_path / "run")


def test_a_killed_rollout_worker_that_may_not_be_replaced_ends_the_run_within_seconds(
    folders: Folders, tmp_path: Path
) -> None:
    config = folders.config(
        ppo={"iterations": 100000, "prompts_per_iteration": 8},
        rollout={"engine": "transformers", "max_restarts": 0},
        experience={"keep": False},
    )
    killed: list[float] = []

    def kill_when_training() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text():
            time.sleep(0.2)
        victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_rollout(pid)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        killed.append(time.monotonic())

    thread = threading.Thread(target=kill_when_training, daemon=True)
    thread.start()
    with pytest.raises(WorkerDied, match="rollout-0 died"):
        train(config, tmp_path / "run")
    assert killed, "the run ended before the worker was killed"
    assert time.monotonic() - killed[0] < 20


def _is_rollout(pid: int) -> bool:
    try:
        return b"ray::RolloutWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_wait_that_runs_out_names_the_actor_and_what_it_was_doing() -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Sleeper:
        def sleep(self) -> None:
            time.sleep(60)

        def fail(self) -> None:
            raise RuntimeError("broken on purpose")

    with session(Cluster(), cpus=1, gpus=0, namespace="test"):
        watch = Watch()
        sleeper = Sleeper.remote()
        with pytest.raises(WaitTimeout, match=r"sleeper-0: no answer within 1 s while dreaming"):
            watch.one("sleeper-0", sleeper.sleep.remote(), timeout_s=1, doing="dreaming")
        other = Sleeper.remote()
        watch.add_loop("other-0", other.fail.remote())
        with pytest.raises(WorkerDied, match=r"other-0 raised while running its loop:(.|\n)*broken on purpose"):
            watch.one("sleeper-0", sleeper.sleep.remote(), timeout_s=30, doing="dreaming")


def test_a_busy_dashboard_port_is_named_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(EnvironmentProblem, match=rf"cluster.dashboard_port {port} is busy"),
            session(Cluster(dashboard=True, dashboard_port=port), cpus=1, gpus=0, namespace="test"),
        ):
            pass
    check_port_free(port)


def test_exit_codes_of_children_are_seen_while_ray_runs_and_afterwards() -> None:
    with session(Cluster(), cpus=1, gpus=0, namespace="test"):
        assert subprocess.run(["false"], check=False).returncode == 1
    assert subprocess.run(["false"], check=False).returncode == 1


def test_a_space_in_pythons_path_is_named_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/some where/python")
    with (
        pytest.raises(EnvironmentProblem, match="/some where/python: there is a space"),
        session(Cluster(), cpus=1, gpus=0, namespace="test"),
    ):
        pass


def test_a_cluster_that_is_too_small_says_what_is_missing() -> None:
    with (
        pytest.raises(EnvironmentProblem, match=r"has 0 GPUs; this run's actors ask for 3"),
        session(Cluster(), cpus=1, gpus=3, namespace="test"),
    ):
        pass
