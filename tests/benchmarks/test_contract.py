"""The benchmarks keep their contract: `--help`, a JSON file of one shape, and breaks of lines that are there."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    "breaks",
    "iteration",
    "weight_sync",
    "memory",
    "memory_at_load",
    "gpu",
    "feedback",
    "reward_models",
    "ensembles",
    "architectures",
    "steady",
    "faults",
    "resume_exact",
    "loop",
    "algorithms",
    "mutants",
)
ROOT = FOLDER.parent
SHAPE = {"name", "when", "machine", "figures", "rows"}


def run(name: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_help_names_both_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "--quick" in told
    assert "--json" in told


def test_gpu_without_a_card_checks_its_configuration_and_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("gpu", "--quick", "--json", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr
    assert "No CUDA card here" in done.stdout
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert set(record) == SHAPE
    assert record["figures"]["cards"] == 0
    assert record["figures"]["estimated_gib_learner"] > 1


@pytest.mark.parametrize("name", [*NAMES, "soak", "chaos"])
def test_committed_results_have_the_shape(name: str) -> None:
    record = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    assert set(record) == SHAPE
    assert all(isinstance(value, (int, float)) for value in record["figures"].values())


def test_every_break_is_of_a_line_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    breaks = importlib.import_module("breaks")
    for each in breaks.BREAKS:
        assert (ROOT / "rlhf_dist" / each.file).read_text().count(each.old) == 1, each.what
        assert (ROOT / "tests" / each.tests.split("::")[0]).exists(), each.what
