"""Every embedded task's files pass each stage's checks; the whole way is in tests/integration/test_scenarios.py (`--soak`)."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import PipelineConfig, SFTConfig, dump, load, override
from rlhf_dist.config.pipeline import OWN_REWARD
from rlhf_dist.errors import ConfigError, WorkerLost
from rlhf_dist.run_folder.console import Console
from rlhf_dist.stages import reward, sft
from rlhf_dist.stages.pipeline import _check_unchanged, rl_config, run, supervised_stages, with_task
from rlhf_dist.stages.rl import prepare as prepare_ppo
from tests.stages.conftest import Made

CONFIGS = Path(__file__).parents[2] / "configs" / "scenarios"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
SMALL = [
    "task.prompts=64",
    "task.demonstrations=256",
    "model={hidden: 64, layers: 2, heads: 2, positions: 128}",
    "sft.epochs=1",
    "prompts.held_out_limit=8",
    "rl.iterations=2",
    "rl.prompts_per_iteration=16",
    "rollout.engine=transformers",
    "learner.threads=1",
]
OWN = ["task.comparisons=256", "reward_model.epochs=1", "reward_model.normalise_on=16"]
"""Of those that train a reward model."""


def small(name: str) -> PipelineConfig:
    """A scenario's config at reduced size."""
    file = CONFIGS / f"{name}.yaml"
    return load(PipelineConfig, file, SMALL + (OWN if load(PipelineConfig, file, []).trains_reward_model else []))


@pytest.mark.parametrize("name", NAMES)
def test_a_scenarios_files_are_what_every_stage_expects(name: str, tmp_path: Path) -> None:
    config = with_task(small(name), tmp_path, Console())
    start = tmp_path / "stages" / "start"
    # As if the earlier stages had run: models of the shape that they leave behind.
    for made in ("stages/sft/policy", OWN_REWARD):
        shutil.copytree(start, tmp_path / made)
    config_file = tmp_path / OWN_REWARD / "config.json"
    config_file.write_text(config_file.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
    stages = {name: (stage, each) for stage, name, each in supervised_stages(config, tmp_path)}
    learnt = sft.prepare(stages["sft"][1])
    assert len(learnt.objective.train.units) > 200
    assert ("reward" in stages) == config.trains_reward_model == (name != "arithmetic")
    if config.trains_reward_model:
        assert len(reward.prepare(stages["reward"][1]).raw) >= 256
    ppo = rl_config(config, tmp_path)
    prepared = prepare_ppo(ppo)
    assert len(prepared.prompts) == 64
    assert len(prepared.held_out) == 8
    assert ppo.gold_judge is not None


@pytest.mark.parametrize(
    ("made", "now", "told"),
    [
        ({"lora": {"rank": 4}}, {}, "made with lora.rank = 4, the config now says None"),
        ({}, {"lora": {"rank": 4}}, "made with lora.rank = None, the config now says 4"),
        (
            {"data": {"path": "x", "chat_template_kwargs": {"think": True}}},
            {"data": {"path": "x"}},
            "made with data.chat_template_kwargs.think = True, the config now says None",
        ),
    ],
)
def test_a_finished_stage_is_not_taken_for_one_of_other_settings(
    made: dict[str, Any], now: dict[str, Any], told: str, tmp_path: Path
) -> None:
    before, after = (SFTConfig(model="m", run_dir=str(tmp_path), **each) for each in (made, now))
    file = tmp_path / "config.yaml"
    file.write_text(dump(before))
    _check_unchanged(file, before)
    with pytest.raises(ConfigError, match=told):
        _check_unchanged(file, after)


def runs(config: PipelineConfig, stages: dict[str, Made], path: Path, *, resume: bool = False) -> list[str]:
    """Names of the stages that a run of the pipeline runs."""
    before = {name: each.ran for name, each in stages.items()}
    run(config, path, Console(), resume=resume)
    return [name for name, each in stages.items() if each.ran > before[name]]


@pytest.mark.parametrize(
    ("grown", "again"),
    [("d.jsonl", ["sft", "reward", "rl"]), ("f.jsonl", ["reward", "rl"]), ("p.jsonl", ["reward", "rl"])],
)
def test_what_reads_changed_data_runs_again_and_what_reads_its_model_after_it(
    grown: str,
    again: list[str],
    own: PipelineConfig,
    stages: dict[str, Made],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    assert runs(own, stages, path) == ["sft", "reward", "rl"]
    assert runs(own, stages, path) == []
    assert (path / "notes.txt").exists()
    (tmp_path / grown).write_text("{}\n{}\n")
    assert runs(own, stages, path) == again
    told = " ".join(capsys.readouterr().out.split())
    assert f"{again[0]}: {tmp_path / grown} has changed (1 -> 2 rows): runs again".replace(" ", "") in told.replace(
        " ", ""
    )
    assert runs(own, stages, path) == []
    for name in ("sft", "reward"):
        earlier = path / "stages" / name / "earlier-1"
        assert (earlier / "summary.json").exists() == (name in again)
    assert (path / "earlier-1" / "policy" / "model.safetensors").exists()


def test_a_stage_that_was_interrupted_goes_on_if_asked_and_begins_anew_if_its_data_changed(
    own: PipelineConfig, stages: dict[str, Made], tmp_path: Path
) -> None:
    path, reward = tmp_path / "run", stages["reward"]
    reward.fails = True
    with pytest.raises(WorkerLost):
        run(own, path, Console())
    with pytest.raises(WorkerLost):
        run(own, path, Console(), resume=True)
    assert reward.resumed == 1
    (tmp_path / "f.jsonl").write_text("{}\n{}\n")
    reward.fails = False
    assert runs(own, stages, path, resume=True) == ["reward", "rl"]
    assert reward.resumed == 1
    assert (path / "stages" / "reward" / "earlier-1" / "checkpoints").exists()


def test_where_no_reward_is_the_pipelines_own_model_none_is_trained_and_its_settings_have_no_effect(
    own: PipelineConfig, stages: dict[str, Made], tmp_path: Path
) -> None:
    tree = own.model_dump(exclude={"reward_model", "reward", "learner"}, exclude_defaults=True)
    rule = {"kind": "function", "name": "r", "path": "tests.scoring.rules:length_of"}
    ruled = PipelineConfig(**tree, reward=[rule], learner={"critic": "value_head"})
    assert runs(ruled, stages, tmp_path / "run") == ["sft", "rl"]
    assert runs(ruled, stages, tmp_path / "run") == []
    assert {"reward_model", "comment_judge"} <= ruled.idle().keys()
    assert not {"reward_model", "comment_judge"} & own.idle().keys()
    with pytest.raises(ValueError, match="reward_model.data is empty"):
        PipelineConfig(**tree)


def test_a_folder_named_relatively_and_absolutely_is_the_same_pipeline(
    own: PipelineConfig, stages: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs(own, stages, Path("run")) == ["sft", "reward", "rl"]
    (tmp_path / "link").symlink_to(tmp_path)
    for spelt in (tmp_path / "run", Path("./run/"), tmp_path / "link" / "run"):
        assert runs(own, stages, spelt) == []
    with pytest.raises(ConfigError, match="was made with batch_size = 64, the config now says 32"):
        run(override(own, ["sft.batch_size=32"]), tmp_path / "run", Console())
