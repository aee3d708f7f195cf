"""Which checkpoint a run goes on from; saving and going on for real: tests/integration/test_ppo_run.py."""

import json
import os
from pathlib import Path

import pytest

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.config import PPOConfig, dump, keys, override
from rlhf_dist.controller import State
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.stages.changes import FIXED
from rlhf_dist.stages.resume import check_settings, newest, save_checkpoint

CONFIG = PPOConfig.model_validate(
    {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "ppo": {"iterations": 9, "kl_target": 6.0}}
)


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    with complete_or_absent(folder) as aside:
        (aside / "learner" / "policy" / "rank-0").mkdir(parents=True)
        (aside / "learner" / "policy" / "rank-0" / "optimizer.safetensors").write_text(f"state of {step}")
        (aside / "critic").mkdir()
        (aside / "critic" / "model.safetensors").write_text("critic")
        (aside / "state.json").write_text(json.dumps({"iteration": step, "kl_coef": 0.3, "gold": [0.5]}))
        (aside / "run.yaml").write_text(dump(CONFIG))
    return folder


def test_without_a_checkpoint_a_run_begins_at_the_beginning(tmp_path: Path) -> None:
    state, begin = newest(CONFIG, tmp_path)
    assert (state.iteration, state.kl_coef, begin.policy) == (0, 0.05, "")


def test_the_newest_checkpoint_says_where_to_go_on_with_what(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    folder = checkpoint(tmp_path, 4)
    state, begin = newest(CONFIG, tmp_path)
    assert (state.iteration, state.kl_coef, state.gold) == (4, 0.3, [0.5])
    assert (begin.iteration, begin.policy, begin.critic) == (4, str(folder), str(folder / "critic"))
    assert begin.state == str(folder / "learner")


@pytest.mark.parametrize("damaged", ["state.json", "critic/model.safetensors", "digests.json"])
def test_a_checkpoint_with_a_changed_file_is_refused_by_the_files_name(damaged: str, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, 4) / damaged
    file.write_text(file.read_text().replace("c", "d").replace(":", ";"))
    with pytest.raises(ModelError, match=f"{damaged}: .*changed since it was written"):
        newest(CONFIG, tmp_path)


def test_where_the_newest_is_damaged_the_one_before_it_serves_and_it_is_said(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / "state.json").write_text("{}")
    state, begin = newest(CONFIG, tmp_path)
    assert (state.iteration, begin.iteration) == (2, 2)
    (told,) = begin.passed_over
    assert "step-000004/state.json: missing or changed" in told


def test_a_checkpoint_beyond_the_configs_iterations_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    with pytest.raises(ConfigError, match=r"saved after iteration 10; ppo.iterations is 9"):
        newest(CONFIG, tmp_path)


KEPT = {
    "policy=other": r"policy was 'a' and is now 'other'; a resumed run keeps it, since what the checkpoint",
    "seed=1": "seed was 0 and is now 1",
    "prompts.path=q": "prompts.path was 'p' and is now 'q'",
    "prompts.held_out=q": "prompts.held_out was None and is now 'q'",
    "reward=c": "reward was .*'b'.* and is now .*'c'",
    "rollout.samples_per_prompt=2": "rollout.samples_per_prompt was 1 and is now 2",
    "ppo.prompts_per_iteration=32": "ppo.prompts_per_iteration was 64 and is now 32",
    "ppo.epochs=2": "ppo.epochs was 1 and is now 2; .*counts optimiser steps",
    "learner.ranks=2": "learner.ranks was 1 and is now 2; .*laid out by it",
    "learner.zero_stage=3": "learner.zero_stage was 2 and is now 3",
    "learner.critic=value_head": "learner.critic was 'model' and is now 'value_head'",
}


@pytest.mark.parametrize("change", KEPT)
def test_what_would_make_it_another_run_is_refused_by_key_and_values(change: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    with pytest.raises(ConfigError, match=KEPT[change]) as told:
        newest(override(CONFIG, [change]), tmp_path)
    assert str(folder) in str(told.value)
    with pytest.raises(ConfigError, match=KEPT[change]):
        check_settings(override(CONFIG, [change]), tmp_path)


def test_every_other_setting_may_change_and_paths_may_be_spelt_anew(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    changes = [
        "learner.policy.lr=1e-3",
        "learner.value.schedule=cosine",
        "ppo.iterations=20",
        "rollout.temperature=0.7",
    ]
    changes += [f"policy={os.path.abspath('a')}", f"prompts.path={os.path.abspath('p')}", "run_dir=elsewhere"]
    assert newest(override(CONFIG, [*changes, "ppo.clip_value=0.1", "timeouts.batch=5"]), tmp_path)[0].iteration == 4


def test_every_setting_that_a_resumed_run_keeps_is_a_setting() -> None:
    assert FIXED.keys() <= {*keys(PPOConfig)}


def test_a_coefficient_goes_on_as_it_adapted_unless_it_is_set_anew_or_fixed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)

    def found(*changes: str) -> float:
        return newest(override(CONFIG, [*changes]), tmp_path)[0].kl_coef

    assert found() == found("ppo.kl_target=3", "ppo.kl_horizon=500") == 0.3
    assert found("ppo.kl_coef=0.2") == 0.2
    assert found("ppo.kl_target=null") == 0.05


def test_a_checkpoint_of_an_earlier_version_is_compared_with_the_run_folders_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    with complete_or_absent(folder) as aside:
        (aside / "learner").mkdir()
        (aside / "state.json").write_text(json.dumps({"iteration": 4, "kl_coef": 0.3}))
    (tmp_path / "config.yaml").write_text(dump(CONFIG))
    assert newest(CONFIG, tmp_path)[0].iteration == 4
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        newest(override(CONFIG, ["seed=1"]), tmp_path)


class Learner:
    """What saving asks of a learner group."""

    models = ("policy", "critic")

    def save(self, name: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(name)

    def save_state(self, name: str, folder: Path) -> None:
        (folder / "rank-0").mkdir(parents=True)
        (folder / "rank-0" / "optimizer.safetensors").write_text(name)


class Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_two_checkpoints_keep_what_learners_need_and_older_ones_their_policy(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(Learner(), Tokenizer(), tmp_path, State(step, 0.1), CONFIG)
    kept = {folder.name: (folder / "learner").exists() for folder in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-000001": False, "step-000002": True, "step-000003": True}
    for file in ("model.safetensors", "tokenizer.json", "critic/model.safetensors"):
        assert (tmp_path / "checkpoints" / "step-000001" / file).exists(), file
    assert newest(CONFIG, tmp_path)[0].iteration == 3
