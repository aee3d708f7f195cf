from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig, dump
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.standing import Standing, set_aside, standing


@pytest.fixture
def config(tmp_path: Path) -> SFTConfig:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "completion": "c"}\n' * 2)
    return SFTConfig(model="m", data={"path": str(tmp_path / "d.jsonl")}, run_dir=str(tmp_path / "run"))


def begun(config: SFTConfig, *names: str) -> Path:
    """The folder of a stage that has left these files."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump(config))
    keep_inputs(config, run_dir)
    for name in names:
        (run_dir / name).mkdir(parents=True) if "." not in name else (run_dir / name).write_text(name)
    return run_dir


def grow(config: SFTConfig) -> None:
    Path(config.data.path).write_text('{"prompt": "p", "completion": "c"}\n' * 3)


def told(config: SFTConfig, *, resume: bool = False) -> Standing:
    found = standing(config, resume=resume)
    return replace(found, told=found.told.replace(str(Path(config.run_dir).parent), ""))


def test_a_finished_stage_is_skipped_until_what_it_had_read_changes(config: SFTConfig) -> None:
    begun(config, "summary.json")
    assert told(config) == Standing("finished before", done=True)
    grow(config)
    assert told(config) == Standing("/d.jsonl has changed (2 -> 3 rows): runs again", anew=True)


@pytest.mark.parametrize("left", ["checkpoints/step-000002/learner", "members/0"])
def test_an_interrupted_stage_goes_on_if_asked_and_if_it_reads_the_same(left: str, config: SFTConfig) -> None:
    assert told(config, resume=True) == Standing("begins")
    begun(config, left)
    assert told(config, resume=True) == Standing("goes on", goes_on=True)
    assert told(config) == Standing("not resumed (--resume): begins anew", anew=True)
    grow(config)
    assert told(config, resume=True) == Standing("/d.jsonl has changed (2 -> 3 rows): begins anew", anew=True)


def test_nothing_that_a_stage_has_left_is_lost_when_it_begins_anew(config: SFTConfig) -> None:
    kept = ("stages/sft", "data", "feedback/tasks.db", "pipeline.yaml", ".lock")
    run_dir = begun(config, "summary.json", "policy", "stages/evaluation", "feedback", *kept)
    everything = {str(each.relative_to(run_dir)) for each in run_dir.rglob("*")}
    first = set_aside(run_dir)
    assert first == run_dir / "earlier-1"
    stay = {"stages", "feedback", *kept}
    moved = {str(each.relative_to(first)) for each in first.rglob("*")}
    assert moved == {each.removeprefix("stages/") for each in everything - stay}
    assert {str(each.relative_to(run_dir)) for each in run_dir.glob("*")} == {
        "earlier-1",
        "stages",
        "data",
        "feedback",
        "pipeline.yaml",
        ".lock",
    }
    (run_dir / "config.yaml").write_text("anew")
    assert set_aside(run_dir) == run_dir / "earlier-2"
    assert (run_dir / "earlier-1" / "summary.json").exists()


@pytest.mark.parametrize("moves", range(5))
def test_an_interrupted_move_leaves_neither_a_finished_stage_nor_one_that_goes_on(
    moves: int, config: SFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = begun(config, "summary.json", "policy", "checkpoints/step-000002/learner")
    grow(config)
    left, real = [moves], Path.rename

    def rename(self: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        set_aside(run_dir)
    found = standing(config, resume=True)
    assert not found.done
    assert not found.goes_on


def test_an_earlier_folder_that_was_deleted_is_in_nobodys_way(config: SFTConfig) -> None:
    run_dir = Path(config.run_dir)
    (run_dir / "earlier-2").mkdir(parents=True)
    assert [set_aside(run_dir).name for _ in range(2)] == ["earlier-1", "earlier-3"]
