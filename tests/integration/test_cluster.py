"""A run submitted to a running cluster, watched by Prometheus, Grafana's queries and `rlhf-dist status`."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rlhf_dist.config import dump
from rlhf_dist.telemetry.ray_metrics import METRICS
from tests.integration.hosts import BIN
from tests.runs import Folders

ROOT = Path(__file__).parents[2]
ITERATIONS = 50
"""Long enough for several exports of every counter, so that rates exist."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """A Ray head with a dashboard, started as an administrator would."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard = free_port(), free_port()
        # Where Ray notes the machine's newest cluster and what Prometheus shall scrape: not the notes of another Ray. Sockets lie
        # there too: a short path.
        self.temporary = tempfile.mkdtemp(prefix="rh")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RLHF_TOKEN_FILE": str(folder / "token"),
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_TMPDIR": self.temporary,
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        self.environment |= {"RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard}", "RLHF_PYTHON": str(BIN / "python")}
        start = (
            f"ray start --block --head --port={self.port} --dashboard-port={self.dashboard} --include-dashboard=true"
        )
        # With the default port it takes no jobs on a machine where another Ray runs.
        sizes = f"--num-cpus=4 --object-store-memory=200000000 --dashboard-agent-listen-port={free_port()}"
        source = f"source {ROOT}/launch/cluster_env.sh && share_token && unset RAY_ADDRESS"
        command = ["bash", "-c", f"{source} && exec {start} {sizes}"]
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output, cwd=ROOT)
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (folder / "output").read_text():
            assert self.process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, (folder / "output").read_text()
            time.sleep(0.1)
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}

        # The agent that takes jobs comes up after all else.
        ready = f"ray job submit --address {self.environment['RAY_ADDRESS']} -- true"
        while (tried := self.bash(ready)).returncode:
            assert time.monotonic() < deadline, tried.stderr
            time.sleep(1)

    def stop(self) -> None:
        """End what we started and nobody else's Ray, which `ray stop` would end too."""
        ours = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def bash(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", script]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    made = Head(tmp_path_factory.mktemp("head"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def config_file(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "rl.yaml"
    config = folders.config(
        rl={"iterations": ITERATIONS}, rollout={"workers": {"min": 1, "max": 2}}, experience={"keep": False}
    )
    file.write_text(dump(config))
    return file


def test_a_job_that_fails_ends_with_the_runs_own_exit_code_and_message(head: Head) -> None:
    done = head.bash("bash launch/ray_job.sh rl /nowhere/rl.yaml")
    assert done.returncode == 2, done.stdout
    assert "error: /nowhere/rl.yaml: no such config file" in done.stdout


def test_a_cluster_without_the_right_token_is_refused_with_a_sentence(head: Head, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    done = head.bash(f"RLHF_TOKEN_FILE={token} bash launch/ray_job.sh rl configs/rl.yaml")
    assert done.returncode == 1
    assert "no Ray dashboard answers at" in done.stderr


@pytest.fixture
def prometheus(head: Head, tmp_path: Path) -> Iterator[str]:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus: install Debian's package")
    address = f"127.0.0.1:{free_port()}"
    shipped = (ROOT / "launch" / "monitoring" / "prometheus.yml").read_text()
    hurried = re.sub(r"(scrape_interval|refresh_interval): \w+", r"\1: 1s", shipped).replace(
        "/tmp/ray", f"{head.temporary}/ray"
    )
    (tmp_path / "prometheus.yml").write_text(hurried)
    files = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *files, f"--web.listen-address={address}"], stdout=log, stderr=log, cwd=tmp_path
        )
    yield address
    process.terminate()
    process.wait(10)


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """What the expression gave at some time in the last minutes: a run's series end with the run."""
    wrapped = urllib.parse.quote(f"last_over_time(({expression})[5m:1s])")
    with urllib.request.urlopen(f"http://{address}/api/v1/query?query={wrapped}", timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def test_a_submitted_run_shows_every_documented_metric_and_every_panel_has_data(
    head: Head, config_file: Path, prometheus: str, tmp_path: Path
) -> None:
    run = tmp_path / "submitted"
    submit = f"bash launch/ray_job.sh rl {config_file} --run-dir {run}"
    job = subprocess.Popen(["bash", "-c", submit], env=head.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.stdout.read() if job.stdout else ""
        time.sleep(0.2)
    elsewhere = f"cd {tmp_path.parent} && rlhf-dist status submitted --once --address 127.0.0.1:{head.port}"
    told = head.bash(elsewhere)
    assert told.returncode == 0, told.stderr
    assert "submitted  training  iteration" in told.stdout
    assert "waiting_for_reward" in told.stdout
    unknown = head.bash(f"cd {tmp_path.parent} && rlhf-dist status other --once --address 127.0.0.1:{head.port}")
    assert unknown.returncode == 2
    assert "which has ['submitted-" in unknown.stderr
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert f"iteration {ITERATIONS}" in output, "the run's log is streamed"

    values = {name: query(prometheus, f"ray_{name}") for name in METRICS}
    assert not [name for name, found in values.items() if not found]
    assert all(series["metric"]["run"].startswith("submitted-") for found in values.values() for series in found)
    single = {name: float(found[0]["value"][1]) for name, found in values.items()}
    assert single["rlhf_staleness"] == 0
    assert single["rlhf_restarts"] == 0
    assert 2 <= single["rlhf_iteration"] == single["rlhf_weight_version"] <= ITERATIONS
    assert 0 < single["rlhf_response_length"] <= 12
    assert single["rlhf_generated_samples_total"] >= 2 * 16
    assert (
        single["rlhf_weight_bytes"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["weights/bytes"]
    )
    phases = {series["metric"]["phase"] for series in values["rlhf_phase_seconds"]}
    assert {"gen", "score_wait", "update", "update_weights", "pull_weights", "step"} <= phases
    assert query(prometheus, "ray_vllm_generation_tokens_total"), "vLLM's own metrics"
    board = json.loads((ROOT / "launch" / "monitoring" / "grafana_dashboard.json").read_text())
    panels = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(panels) > 15
    assert not [title for title, expression in panels if not query(prometheus, expression.replace("$run", ".*"))]


def test_the_scrape_config_has_no_fixed_hosts() -> None:
    tree = yaml.safe_load((ROOT / "launch" / "monitoring" / "prometheus.yml").read_text())
    assert "file_sd_configs" in tree["scrape_configs"][0]
