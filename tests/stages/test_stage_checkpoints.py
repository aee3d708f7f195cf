"""Where a stage that learns from data goes on; on real parts: tests/integration/test_stages.py."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.config import DPOConfig, RewardConfig, SFTConfig, keys, override
from rlhf_dist.errors import ConfigError, DataError, ModelError
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.changes import SUPERVISED
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.stage_checkpoints import Keeper, newest, read_said, rewind


class Learner:
    """What a keeper asks of a learner group."""

    num_parameters = 7

    def save(self, name: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(name)

    def save_state(self, name: str, folder: Path) -> None:
        (folder / "rank-0").mkdir(parents=True)
        (folder / "rank-0" / "pieces.safetensors").write_text(name)

    def when_written(self, folder: Path, done: Callable[[dict[str, str]], None]) -> None:
        done({})

    def written(self, folder: Path) -> dict[str, str]:
        return {}


@pytest.fixture
def config(tmp_path: Path) -> RewardConfig:
    (tmp_path / "f.jsonl").write_text("{}\n")
    return RewardConfig(
        model="m",
        data=[{"path": str(tmp_path / "f.jsonl")}],
        models=3,
        checkpoint_every=2,
        run_dir=str(tmp_path / "run"),
    )


def keeper(config: Any, member: int = 0) -> Keeper:
    run_dir = Path(config.run_dir)
    if not run_dir.exists():
        run_dir.mkdir()
        keep_inputs(config, run_dir)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    encoder: Any = SimpleNamespace(tokenizer=tokenizer)
    learner: Any = Learner()
    return Keeper(Behind(learner), encoder, run_dir, config, member=member)


def steps(config: Any) -> set[str]:
    return {each.name for each in (Path(config.run_dir) / "checkpoints").glob("*")}


def test_every_so_many_steps_there_is_a_checkpoint_and_two_stay(config: RewardConfig) -> None:
    for step in range(1, 8):
        keeper(config).keep(step, {"loss": step / 3})
    assert steps(config) == {"step-000004", "step-000006"}
    found = newest(config, Path(config.run_dir))
    assert (found.step, found.found, found.told) == (6, {"loss": 2.0}, "going on after step 6")
    assert Path(found.state) == Path(config.run_dir, "checkpoints/step-000006/learner/model").absolute()
    assert newest(config, Path("nowhere")).told == "there is no checkpoint yet: from the beginning"


def test_the_one_before_a_damaged_one_serves_which_is_said_and_what_came_later_is_forgotten(
    config: RewardConfig,
) -> None:
    for step in (2, 4):
        keeper(config).keep(step, {})
    run_dir = Path(config.run_dir)
    (run_dir / "checkpoints/step-000004/model.safetensors").write_text("damage")
    found = newest(config, run_dir)
    assert found.step == 2
    assert "step-000004/model.safetensors: missing or changed" in found.told
    folder = RunFolder(run_dir, config, console=Console(), stage="reward")
    rewind(folder, found)
    assert steps(config) == {"step-000002"}
    (run_dir / "checkpoints/step-000002/state.json").write_text("{}")
    with pytest.raises(ModelError, match=r"step-000002/state.json: missing or changed"):
        newest(config, run_dir)


def test_an_ensembles_trained_members_are_kept_and_a_checkpoint_is_of_the_next_one(config: RewardConfig) -> None:
    run_dir = Path(config.run_dir)
    said = {"held_out": np.array([[1 / 3], [2.0]])}
    keeper(config).keep(4, {})
    first = keeper(config).keep_member(4, said)
    assert (read_said(first)["held_out"] == said["held_out"]).all()
    found = newest(config, run_dir)
    assert (found.step, found.state, found.members, found.told) == (4, "", (first,), "going on after member 1")
    keeper(config, member=1).keep(6, {})
    found = newest(config, run_dir)
    assert (found.step, found.members) == (6, (first,))
    second = keeper(config, member=1).keep_member(8, said)
    (second / "state.json").write_text("{}")
    found = newest(config, run_dir)
    assert (found.step, found.members) == (6, (first,)), "the second member is trained again, from its checkpoint on"
    folder = RunFolder(run_dir, config, console=Console(), stage="reward")
    rewind(folder, found)
    assert not second.exists()
    assert first.exists()


KEPT = ("model=n", "seed=1", "batch_size=3", "epochs=2", "heads=2", "lora={rank: 2}")


@pytest.mark.parametrize("change", KEPT)
def test_what_would_make_it_another_stage_is_refused(change: str, config: RewardConfig) -> None:
    keeper(config).keep(2, {})
    with pytest.raises(ConfigError, match=f"step-000002: {change.partition('=')[0]}.* was .* and is now"):
        newest(override(config, [change]), Path(config.run_dir))


def test_other_settings_take_effect_and_another_spelling_is_no_change(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeper(config).keep(2, {})
    run_dir = Path(config.run_dir)
    changed = override(config, ["optimizer.lr=1", "checkpoint_every=5", "timeouts.batch=5", "score_coef=0.5"])
    assert newest(changed, run_dir).step == 2
    monkeypatch.chdir(tmp_path)
    assert newest(override(config, ["data=[{path: f.jsonl}]", "run_dir=run/"]), Path("run")).step == 2


def test_data_that_have_changed_are_refused_by_file_and_rows(config: RewardConfig, tmp_path: Path) -> None:
    keeper(config).keep_member(2, {})
    (tmp_path / "f.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match=r"members/0: since it was made .*f.jsonl has changed \(1 -> 2 rows\)"):
        newest(config, Path(config.run_dir))


def test_every_setting_that_a_resumed_stage_keeps_is_a_setting() -> None:
    assert SUPERVISED.keys() <= {key for kind in (SFTConfig, RewardConfig, DPOConfig) for key in keys(kind)}


def test_a_checkpoint_of_another_version_is_refused_by_name(config: RewardConfig) -> None:
    keeper(config).keep(2, {})
    folder = Path(config.run_dir) / "checkpoints" / "step-000002"
    with complete_or_absent(folder) as aside:
        (aside / "learner").mkdir()
        (aside / "state.json").write_text('{"steps": 2}')
    with pytest.raises(DataError, match=r"step-000002/state.json: not what this version writes: step is .*'steps': 2"):
        newest(config, Path(config.run_dir))
