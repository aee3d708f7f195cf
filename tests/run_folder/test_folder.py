"""What a run leaves behind, whatever happens to it."""

import json
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig, load
from rlhf_dist.errors import ConfigError, DataError
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder, choose
from rlhf_dist.run_folder.passages import Passage, read_passages, write_passages
from rlhf_dist.stopping import Stopped

CONFIG = SFTConfig(model="a", seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run", CONFIG, console=Console(), stage="sft", steps=5)
    made.rewind(0)
    return made


def status(folder: RunFolder) -> dict:
    return json.loads((folder.path / "status.json").read_text())


def test_a_run_leaves_its_config_its_metrics_and_where_it_is(folder: RunFolder) -> None:
    assert load(SFTConfig, folder.path / "config.yaml") == CONFIG
    assert status(folder)["state"] == "preparing"
    folder.record(0, {"loss": 1.5}, fleet={"rollout-0": "ready"})
    told = status(folder)
    assert (told["state"], told["iteration"], told["iterations"]) == ("training", 1, 5)
    assert (told["metrics"], told["fleet"]) == ({"loss": 1.5}, {"rollout-0": "ready"})
    assert [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [
        {"iteration": 0, "loss": 1.5}
    ]
    summary = folder.finish({"steps": 1})
    assert (summary["stage"], summary["seed"], summary["steps"]) == ("sft", 3, 1)
    assert json.loads((folder.path / "summary.json").read_text()) == summary
    assert (folder.path / "report.html").exists()
    assert status(folder)["state"] == "finished"


@pytest.mark.parametrize("torn", ["", '{"iteration": 3, "lo', "\x00" * 7])
def test_a_resumed_run_forgets_what_it_does_again_and_a_line_that_was_never_finished(torn: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"iteration": n, "loss": float(n)} for n in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    folder = RunFolder(run, CONFIG, console=Console(), stage="sft")
    folder.rewind(2)
    folder.record(2, {"loss": 9.0})
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kept == [*rows[:2], {"iteration": 2, "loss": 9.0}]


def test_the_seconds_of_a_resumed_run_hold_those_of_the_iterations_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"iteration": n, "timing_s/step": 100.0} for n in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = RunFolder(run, CONFIG, console=Console(), stage="sft")
    folder.rewind(2)
    assert 200 <= folder.finish({})["seconds"]["total"] < 250


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"iteration": 0}\nnonsense\n')
    with pytest.raises(DataError, match="metrics.jsonl:2: not valid JSON"):
        RunFolder(run, CONFIG, console=Console(), stage="sft").rewind(5)


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("broken"), "failed"), (KeyboardInterrupt(), "failed"), (Stopped(15), "stopped")]
)
def test_a_run_that_ends_early_says_of_what(error: BaseException, state: str, folder: RunFolder) -> None:
    heard: list[str] = []
    folder.listeners.append(lambda told: heard.append(told["state"]))

    def broken() -> None:
        with folder.told_of_failure():
            raise error

    with pytest.raises(type(error)):
        broken()
    assert status(folder)["state"] == state
    assert str(error) in status(folder)["error"]
    assert heard == [], "listeners may be what failed"


def test_a_folder_that_holds_a_run_is_taken_only_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert choose(str(run), explicit=True) == run
    RunFolder(run, CONFIG, console=Console(), stage="sft")
    assert choose(str(run), explicit=False) == tmp_path / "run-2"
    assert choose(str(run), explicit=True, resume=True) == run
    with pytest.raises(ConfigError, match="already holds a run"):
        choose(str(run), explicit=True)


def test_passages_survive_and_damaged_ones_are_named(tmp_path: Path) -> None:
    assert read_passages(tmp_path) == []
    said = [Passage("T", "text", ("a", "b"), (("1", "2"),)), Passage("U", "more", svg="<svg/>")]
    write_passages(tmp_path, said)
    found = read_passages(tmp_path)
    assert [(each.title, [*map(list, each.rows)], each.svg) for each in found] == [
        ("T", [["1", "2"]], ""),
        ("U", [], "<svg/>"),
    ]
    (tmp_path / "sections.json").write_text('[{"titel": "T"}]')
    with pytest.raises(DataError, match="sections.json: not what a stage writes"):
        read_passages(tmp_path)
