"""Which checkpoint a run goes on from; saving and going on for real: tests/integration/test_rl_run.py."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_dist.checkpoint import complete_or_absent, forget_after, verify
from rlhf_dist.config import RLConfig, dump, keys, override
from rlhf_dist.controller import State
from rlhf_dist.errors import ConfigError, ModelError, StorageError, WorkerDied
from rlhf_dist.files import write_json_lines
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.changes import FIXED
from rlhf_dist.stages.resume import check_settings, newest, save_checkpoint, told_of_resume
from rlhf_dist.telemetry.trackers import JsonlTracker

CONFIG = RLConfig.model_validate(
    {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "rl": {"iterations": 9}, "algorithm": {"kl_target": 6.0}}
)


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    with complete_or_absent(folder) as aside:
        (aside / "learner" / "policy" / "rank-0").mkdir(parents=True)
        (aside / "learner" / "policy" / "rank-0" / "pieces.safetensors").write_text(f"state of {step}")
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
    with pytest.raises(ConfigError, match=r"saved after iteration 10; rl.iterations is 9"):
        newest(CONFIG, tmp_path)


KEPT = {
    "policy=other": r"policy was 'a' and is now 'other'; a resumed run keeps it, since what the checkpoint",
    "seed=1": "seed was 0 and is now 1",
    "prompts.path=q": "prompts.path was 'p' and is now 'q'",
    "prompts.held_out=q": "prompts.held_out was None and is now 'q'",
    "reward=c": "reward was .*'b'.* and is now .*'c'",
    "rollout.samples_per_prompt=2": "rollout.samples_per_prompt was 1 and is now 2",
    "rl.prompts_per_iteration=32": "rl.prompts_per_iteration was 64 and is now 32",
    "rl.epochs=2": "rl.epochs was 1 and is now 2; .*counts optimiser steps",
    "learner.critic=value_head": "learner.critic was 'model' and is now 'value_head'; .*of those parameters",
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
        "rl.iterations=20",
        "learner.ranks=2",
        "learner.zero_stage=3",
        "learner.precision=bf16",
        "rollout.temperature=0.7",
    ]
    (tmp_path / "link").symlink_to(os.path.abspath("."))
    changes += [f"policy={os.path.abspath('a')}/", f"prompts.path={tmp_path}/link/./p", "run_dir=elsewhere"]
    assert (
        newest(override(CONFIG, [*changes, "algorithm.clip_value=0.1", "timeouts.batch=5"]), tmp_path)[0].iteration == 4
    )


def test_every_setting_that_a_resumed_run_keeps_is_a_setting() -> None:
    assert FIXED.keys() <= {*keys(RLConfig)}


def test_a_coefficient_goes_on_as_it_adapted_unless_it_is_set_anew_or_fixed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)

    def found(*changes: str) -> float:
        return newest(override(CONFIG, [*changes]), tmp_path)[0].kl_coef

    assert found() == found("algorithm.kl_target=3", "algorithm.kl_horizon=500") == 0.3
    assert found("algorithm.kl_coef=0.2") == 0.2
    assert found("algorithm.kl_target=null") == 0.05


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
        (folder / "rank-0" / "pieces.safetensors").write_text(name)

    def when_written(self, folder: Path, done: Callable[[dict[str, str]], None]) -> None:
        done({})


class Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def save(run: Path, step: int, score: float | None = None, **kept: object) -> None:
    config = override(
        CONFIG, ["checkpoint_every=1", *[f"checkpoints_kept.{key}={value}" for key, value in kept.items()]]
    )
    if score is not None:
        JsonlTracker(run / "metrics.jsonl").log(step - 1, {"critic/rewards/mean": score})
    save_checkpoint(Behind(Learner()), Tokenizer(), run, State(step, 0.1), config)


def there(run: Path) -> dict[int, bool]:
    """Steps of the checkpoints that are there, and whether a run could go on from them."""
    found = {int(folder.name[-6:]): (folder / "learner").exists() for folder in (run / "checkpoints").iterdir()}
    return dict(sorted(found.items()))


def test_the_newest_checkpoints_stay_whole_of_older_ones_the_best_policies_and_all_are_true(tmp_path: Path) -> None:
    for step, score in enumerate([0.1, 0.5, 0.3, 0.9, 0.2, 0.4], start=1):
        save(tmp_path, step, score)
    assert there(tmp_path) == {4: False, 5: True, 6: True}, "2 newest, 1 best by default"
    for folder in (tmp_path / "checkpoints").iterdir():
        verify(folder)
    for file in ("model.safetensors", "tokenizer.json", "critic/model.safetensors"):
        assert (tmp_path / "checkpoints" / "step-000004" / file).exists(), file
    save(tmp_path, 7, 0.0, last=1, best=2)
    assert there(tmp_path) == {4: False, 6: False, 7: True}
    save(tmp_path, 8, 0.0, last=1, best=0)
    assert there(tmp_path) == {8: True}


def test_a_damaged_checkpoint_is_not_counted_and_what_was_not_measured_is_not_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-000003" / "state.json").unlink()
    save(tmp_path, 4)
    assert there(tmp_path) == {2: True, 4: True}


def test_checkpoints_of_iterations_that_are_done_again_do_not_count(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step-000006" / "state.json").write_text("{}")
    assert newest(CONFIG, tmp_path)[0].iteration == 4
    forget_after(tmp_path, 4)
    save(tmp_path, 5, last=1)
    assert there(tmp_path) == {5: True}


@pytest.mark.parametrize("moment", ["write_text", "remove_folder"])
def test_a_crash_while_a_checkpoint_is_pruned_leaves_it_true(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 0.0)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rlhf_dist.checkpoint.{moment}", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3, 0.0)
    for folder in (tmp_path / "checkpoints").iterdir():
        verify(folder)
    assert newest(CONFIG, tmp_path)[0].iteration == 3


def test_people_are_told_from_where_a_run_goes_on_and_what_has_changed(tmp_path: Path) -> None:
    def told(*changes: str) -> list[str]:
        config = override(CONFIG, [*changes])
        return told_of_resume(config, tmp_path, newest(config, tmp_path)[1])

    assert told() == [f"{tmp_path}/checkpoints: no checkpoint to go on from, so PPO starts from the beginning"]
    write_json_lines(tmp_path / "metrics.jsonl", [{"iteration": 0}])
    assert told()[0].endswith("from the beginning, and what 1 iterations recorded is thrown away")
    checkpoint(tmp_path, 2)
    assert told() == []
    assert told("rollout.temperature=0.5", "run_dir=elsewhere", "algorithm.kl_coef=0.2") == [
        "settings that changed since step-000002: rollout.temperature 1.0 -> 0.5, algorithm.kl_coef 0.05 -> 0.2"
    ]
    (checkpoint(tmp_path, 4) / "state.json").write_text("{}")
    (note,) = told()
    assert "step-000004/state.json: missing or changed" in note
    assert note.endswith("going on from step-000002, the newest that is whole")


def test_a_disk_that_is_full_when_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    class Full(Learner):
        def save_state(self, name: str, folder: Path) -> None:
            super().save_state(name, folder)
            raise WorkerDied(
                "learner-0 raised while saving the state:\nSafetensorError: I/O error: No space left (os error 28)"
            )

    save(tmp_path, 1)
    with pytest.raises(
        StorageError, match=r"step-000002: cannot be written: No space left on device; [\d,]+ MiB are free"
    ) as told:
        save_checkpoint(Behind(Full()), Tokenizer(), tmp_path, State(2, 0.1), CONFIG)
    assert "\n" not in str(told.value)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_state_of_an_earlier_version_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    rank = checkpoint(tmp_path, 4) / "learner" / "policy" / "rank-0"
    (rank / "pieces.safetensors").rename(rank / "optimizer.safetensors")
    digests = rank.parents[2] / "digests.json"
    digests.write_text(digests.read_text().replace("pieces.", "optimizer."))
    with pytest.raises(ModelError, match=r"learner/policy: no state of an optimiser that this version reads"):
        newest(CONFIG, tmp_path)
