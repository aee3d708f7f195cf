"""A real run is killed, stopped, lied to and has its files damaged, and comes out whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ("stop reward", "kill learner", "server busy")
"""A hang of one who is replaced, a death after which the run is wired anew, and the server. All kinds are in the soak."""


def chaos(folder: Path, *, faults: int, kinds: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_dist.cli", "chaos", str(ROOT / "configs/chaos.yaml")]
    chosen = ["--set", f"chaos.kinds=[{', '.join(kinds)}]"] if kinds else []
    options = ["--run-dir", str(folder), "--faults", str(faults), "--seed", "0", *chosen]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_a_run_gets_over_one_fault_of_each_sort(tmp_path: Path) -> None:
    done = chaos(tmp_path / "chaos", faults=len(SHORT), kinds=SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "chaos/chaos.json").read_text())["figures"]
    assert figures["faults"] == len(SHORT)
    assert figures["resumed"] == 0, "it goes on by itself"


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_hundred_faults(tmp_path: Path) -> None:
    """Its report is committed as benchmarks/results/chaos.json."""
    done = chaos(tmp_path / "chaos", faults=100)
    report = (tmp_path / "chaos/chaos.json").read_text()
    (ROOT / "benchmarks/results/chaos.json").write_text(report + "\n")
    assert done.returncode == 0, done.stdout + done.stderr
