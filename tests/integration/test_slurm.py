"""`sbatch launch/slurm.sbatch` on a real Slurm: a run to its end, through a requeue in the middle."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_dist.config import dump
from tests.integration.hosts import BIN
from tests.integration.slurm import Slurm, missing, slurm
from tests.runs import Folders

ROOT = Path(__file__).parents[2]
REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ITERATIONS = 8
PORT = "6431"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as made:
        yield made


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_on_slurm_goes_on_after_a_requeue(cluster: Slurm, folders: Folders, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    cluster.environment |= {
        "RLHF_VENV": str(BIN.parent),
        "RLHF_TOKEN_FILE": str(tmp_path / "token"),
        "RLHF_PORT": PORT,
    }
    config = folders.config(
        rl={"iterations": ITERATIONS, "prompts_per_iteration": 64},
        rollout={"engine": "transformers"},
        checkpoint_every=1,
        cluster={"placement": "colocated"},  # two cores: learner, engine and scorers share one of Ray's CPU slots
    )
    (tmp_path / "rl.yaml").write_text(dump(config))
    script = ["launch/slurm.sbatch", "rl", str(tmp_path / "rl.yaml"), "--run-dir", str(run)]
    job = cluster.submit(f"--output={log}", *script, cwd=ROOT)

    def recorded() -> list[int]:
        file = run / "metrics.jsonl"
        return [json.loads(line)["iteration"] for line in file.read_text().splitlines()] if file.exists() else []

    def wait(state: str, *, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while cluster.job(job)["JobState"] != state:
            assert cluster.job(job)["JobState"] != "FAILED", log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"not {state} within {timeout} s: {cluster.job(job)}"
            time.sleep(0.5)

    wait("RUNNING", timeout=60)
    deadline = time.monotonic() + 240
    while len(recorded()) < 2:
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        assert cluster.job(job)["JobState"] == "RUNNING", log.read_text()[-3000:]
        time.sleep(0.2)
    cluster.run("scontrol", "requeue", job)
    wait("PENDING", timeout=90)
    deadline = time.monotonic() + 90
    while subprocess.run(["pgrep", "-f", f"gcs_server.*{PORT}"], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "the job's Ray outlives it"
        time.sleep(0.5)
    first = recorded()
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait two minutes
    wait("COMPLETED", timeout=300)

    assert cluster.job(job)["Restarts"] == "1"
    assert recorded() == list(range(ITERATIONS)), "every iteration once"
    controller = [json.loads(line) for line in (run / "logs" / "controller.jsonl").read_text().splitlines()]
    iterations = [line["iteration"] for line in controller if line["message"] == "iteration done"]
    assert iterations[: len(first)] == first
    assert iterations.count(0) == 1, "the second start went on from a checkpoint"
    assert json.loads((run / "summary.json").read_text())["iterations"] == ITERATIONS


@pytest.mark.soak
def test_a_job_whose_ray_does_not_start_fails_and_says_so(cluster: Slurm, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cluster.environment |= {
            "RLHF_VENV": str(BIN.parent),
            "RLHF_TOKEN_FILE": str(tmp_path / "token"),
            "RLHF_PORT": port,
            "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "5",
        }
        log = tmp_path / "log"
        job = cluster.submit(
            f"--output={log}", "launch/slurm.sbatch", "demo", "--run-dir", str(tmp_path / "run"), cwd=ROOT
        )
        deadline = time.monotonic() + 120
        while cluster.job(job)["JobState"] not in ("FAILED", "COMPLETED"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert cluster.job(job)["JobState"] == "FAILED"
    assert log.read_text().splitlines()[-1].startswith("error: Ray did not start on every node")
