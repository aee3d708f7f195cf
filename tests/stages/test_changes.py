"""Which settings differ; what a resumed run may change: test_resume.py and test_stage_checkpoints.py."""

import os
from pathlib import Path

import pytest

from rlhf_dist.config import SFTConfig
from rlhf_dist.stages.changes import changes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(run_dir: object, model: object, **data: object) -> SFTConfig:
    return SFTConfig(run_dir=str(run_dir), model=str(model), data={"path": "d.jsonl", **data})


SPELT = ["{here}/runs/a", "runs/a/", "./runs/../runs/a", "link/a", "{here}/link/a/"]


@pytest.mark.parametrize("spelt", SPELT)
def test_one_folder_is_the_same_however_it_is_spelt(spelt: str, here: Path) -> None:
    name = spelt.format(here=here)
    before = config("runs/a", "runs/a/start")
    assert [*changes(before, config(name, os.path.join(name, "start")))] == []
    assert [*changes(config(name, os.path.join(name, "start")), before)] == []


def test_relative_paths_count_from_where_the_run_was_started(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = config("runs/a", "models/m")
    monkeypatch.chdir("/")
    assert [*changes(before, config(here / "runs" / "a", here / "models" / "m"))] == []
    (told,) = changes(before, config(here / "runs" / "a", "/others/m"))
    assert told == ("model", "models/m", "/others/m")


def test_another_folder_is_another(here: Path) -> None:
    assert [key for key, *_ in changes(config("runs/a", "m"), config("runs/b", "m2"))] == ["run_dir", "model"]
