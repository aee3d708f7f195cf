"""What a run leaves behind, whatever happens to it."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig, load
from rlhf_dist.errors import ConfigError, DataError, EnvironmentProblem, StorageError
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder, claimed
from rlhf_dist.run_folder.passages import Passage, read_passages, write_passages
from rlhf_dist.stopping import Stopped
from tests.runs import small_disk


def fill(ballast: Path) -> None:
    """Let somebody else take all that is left."""
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(b"0" * 512):
            pass


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


def test_lines_that_cannot_be_read_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b'{"iteration": 0}\nnonsense\n{"iteration": 2}\n[1]\n\x00\x00\n')
    folder = RunFolder(run, CONFIG, console=Console(), stage="sft")
    folder.rewind(5)
    assert [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 2]
    (note,) = folder.finish({})["notes"]
    assert note.startswith("3 lines of metrics.jsonl are lost: ")
    assert "metrics.jsonl:2: not valid JSON" in note
    assert "metrics.jsonl:2: not valid JSON" in (run / "report.html").read_text()


def test_a_run_that_is_wired_anew_rewinds_again_and_keeps_its_trackers(folder: RunFolder) -> None:
    kept = list(folder._trackers)
    for iteration in range(3):
        folder.record(iteration, {"loss": float(iteration)})
    folder.rewind(1)
    assert folder._trackers == kept
    folder.record(1, {"loss": 9.0})
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"iteration": 0, "loss": 0.0}, {"iteration": 1, "loss": 9.0}]


def test_what_a_killed_run_left_half_written_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "run" / "checkpoints" / ".step-000002.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    RunFolder(tmp_path / "run", CONFIG, console=Console(), stage="sft")
    assert not left.exists()


def test_on_a_full_disk_a_run_ends_in_one_sentence_with_whole_files_and_a_true_status(tmp_path: Path) -> None:
    run = tmp_path / "small"
    with small_disk(run, kib=256):
        folder = RunFolder(run, CONFIG, console=Console(), stage="sft", steps=100)
        folder.rewind(0)
        folder.record(0, {"loss": 1.0})
        ballast = run / "others"

        def go_on() -> None:
            with folder.told_of_failure():
                for iteration in range(1, 1000):
                    fill(ballast)
                    folder.record(iteration, {f"metric {number}": float(number) for number in range(100)})

        with pytest.raises(
            StorageError, match=r"small/\S+: cannot be written: No space left on device; 0 MiB are free"
        ) as told:
            go_on()
        assert "\n" not in str(told.value)
        found = status(folder)
        assert (found["state"], "No space left" in found["error"]) == ("failed", True)
        assert [*run.rglob(".*.partial")] == []
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["iteration"] for row in rows] == [*range(len(rows))]
        with pytest.raises(EnvironmentProblem, match="No space left on device"):
            RunFolder(run, CONFIG, console=Console(), stage="sft")
        ballast.unlink()
        folder = RunFolder(run, CONFIG, console=Console(), stage="sft", steps=100)
        folder.rewind(1)
        folder.record(1, {"loss": 2.0})
        folder.finish({})
        assert status(folder)["state"] == "finished"


def test_a_folder_that_is_deleted_in_mid_run_ends_it_in_one_sentence(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)
    with pytest.raises(StorageError, match=r"metrics.jsonl: cannot be written: its folder is gone"):
        folder.record(0, {"loss": 1.0})


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "file", "file/run", "x" * 300])
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"again": True}])
def test_a_folder_that_cannot_be_written_is_one_sentence(place: str, how: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file in its place")
    with pytest.raises(EnvironmentProblem, match="cannot be written: .* free on its disk. Expected a folder") as told:  # noqa: SIM117
        with claimed(str(tmp_path / place), explicit=True, **how):
            pytest.fail("it was taken")
    assert "\n" not in str(told.value)


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

    def taken(**how: bool) -> Path:
        with claimed(str(run), **how) as path:
            return path

    assert taken(explicit=True) == run
    assert not run.exists(), "what was made for nothing is taken away"
    assert taken(explicit=True, resume=True) == run, "a queue's job says --resume from its first start"
    RunFolder(run, CONFIG, console=Console(), stage="sft")
    assert taken(explicit=False) == tmp_path / "run-2"
    assert taken(explicit=True, resume=True) == taken(explicit=True, again=True) == run
    with pytest.raises(ConfigError, match="already holds a run"):
        taken(explicit=True)
    (run / "config.yaml").unlink()
    (run / "status.json").rename(run / "notes.txt")
    with pytest.raises(ConfigError, match=r"holds no run to go on with, but notes.txt"):
        taken(explicit=True, resume=True)


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
    with pytest.raises(DataError, match="sections.json: not what this version writes"):
        read_passages(tmp_path)


def test_a_report_that_cannot_be_drawn_costs_the_report_only(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr("rlhf_dist.run_folder.report.write_report", fail)
    folder.finish({"steps": 1})
    assert status(folder)["state"] == "finished"
    (note,) = json.loads((folder.path / "summary.json").read_text())["notes"]
    assert note == "there is no report.html: ZeroDivisionError: float division by zero"
