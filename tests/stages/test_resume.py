"""Which checkpoint a run goes on from; saving and going on for real: tests/integration/test_ppo_run.py."""

import json
from pathlib import Path

import pytest

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.config import PPOConfig
from rlhf_dist.controller import State
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.stages.resume import newest, save_checkpoint

CONFIG = PPOConfig.model_validate({"policy": "a", "reward": "b", "prompts": {"path": "p"}, "ppo": {"iterations": 9}})


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    with complete_or_absent(folder) as aside:
        (aside / "learner" / "policy" / "rank-0").mkdir(parents=True)
        (aside / "learner" / "policy" / "rank-0" / "optimizer.safetensors").write_text(f"state of {step}")
        (aside / "critic").mkdir()
        (aside / "critic" / "model.safetensors").write_text("critic")
        (aside / "state.json").write_text(json.dumps({"iteration": step, "kl_coef": 0.3, "gold": [0.5]}))
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
        save_checkpoint(Learner(), Tokenizer(), tmp_path, State(step, 0.1))
    kept = {folder.name: (folder / "learner").exists() for folder in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-000001": False, "step-000002": True, "step-000003": True}
    for file in ("model.safetensors", "tokenizer.json", "critic/model.safetensors"):
        assert (tmp_path / "checkpoints" / "step-000001" / file).exists(), file
    assert newest(CONFIG, tmp_path)[0].iteration == 3
