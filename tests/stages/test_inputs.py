import json
import os
import re
from pathlib import Path

import pytest

from rlhf_dist.config import RewardConfig, RLConfig, SFTConfig
from rlhf_dist.stages import inputs
from rlhf_dist.stages.inputs import changed, inputs_of, keep_inputs, kept_inputs


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("model", "policy", "judge", "prompts", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    for name in ("a.jsonl", "b.jsonl", "prompts/p.jsonl", "held.jsonl"):
        (tmp_path / name).write_text('{"x": 1}\n' * 1024)
    return tmp_path


def reward(files: Path) -> RewardConfig:
    return RewardConfig(
        model=str(files / "model"),
        policy=str(files / "policy"),
        prompts={"path": str(files / "prompts")},
        data=[{"path": str(files / "a.jsonl")}, {"path": str(files / "b.jsonl"), "kind": "scores"}],
        comment_judge={"model": str(files / "judge")},
        run_dir=str(files / "run"),
    )


def test_everything_that_a_stage_reads_is_known_by_its_key(files: Path) -> None:
    found = {*inputs_of(reward(files), {})}
    assert found == {"model", "policy", "prompts.path", "data.0.path", "data.1.path", "comment_judge.model"}
    held = SFTConfig(model="owner/name", data={"path": "glue", "held_out": str(files / "held.jsonl")})
    assert {*inputs_of(held, {})} == {"data.held_out"}, "names on the hub are not looked at"
    ppo = RLConfig(
        policy=str(files / "policy"),
        reward=[{"path": str(files / "model")}, {"kind": "function", "name": "f", "path": "a:b"}],
        prompts={"path": str(files / "prompts"), "held_out": str(files / "held.jsonl")},
        safety={"classifier": str(files / "judge")},
    )
    expected = {"policy", "reward.0.path", "prompts.path", "prompts.held_out", "safety.classifier"}
    assert {*inputs_of(ppo, {})} == expected


CHANGES = {
    "a.jsonl": lambda file: file.write_text('{"x": 1}\n' * 1100),
    "prompts/p.jsonl": lambda file: file.write_text('{"x": 2}\n' * 1024),
    "model/model.safetensors": lambda file: file.write_text("other"),
    "judge/tokenizer.json": lambda file: file.write_text("{}"),
    "policy/model.safetensors": lambda file: file.unlink(),
}
TOLD = {
    "a.jsonl": r"a.jsonl has changed \(1,024 -> 1,100 rows\)",
    "prompts/p.jsonl": r"prompts has changed \(1,024 -> 1,024 rows\)",
    "model/model.safetensors": r"model has changed \(model.safetensors\)",
    "judge/tokenizer.json": r"judge has changed \(tokenizer.json\)",
    "policy/model.safetensors": r"policy has changed \(model.safetensors\)",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_with_its_file(name: str, files: Path) -> None:
    config = reward(files)
    (files / "run").mkdir()
    keep_inputs(config, files / "run")
    before = kept_inputs(files / "run")
    assert changed(config, before) == ""
    CHANGES[name](files / name)
    assert re.search(TOLD[name], changed(config, before))


def test_another_time_of_the_same_contents_and_another_spelling_are_no_change(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inputs_of(reward(files), {})
    for file in files.rglob("*.*"):
        os.utime(file, (1, 1))
    monkeypatch.chdir(files)
    assert changed(reward(Path()), before) == ""


def test_a_file_that_came_to_what_is_read_is_told_where_it_is_known_what_was_read(files: Path) -> None:
    fewer = reward(files).model_copy(update={"data": reward(files).data[:1]})
    before = inputs_of(fewer, {})
    assert changed(reward(files), before) == f"{files / 'b.jsonl'} is new (0 -> 1,024 rows)"
    assert changed(fewer, inputs_of(reward(files), {})) == ""


def test_a_choice_is_not_taken_for_a_folder_of_its_name(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert (reward(files).learner.critic, Path("model").is_dir()) == ("model", True)
    assert {key for key in inputs_of(reward(files), {}) if key.startswith("learner")} == set()


def test_a_large_file_is_read_again_only_if_its_size_or_time_changed(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "LARGE", 100)
    config, file = reward(files), files / "a.jsonl"
    before = json.loads(json.dumps(inputs_of(config, {})))
    time_ns, told = file.stat().st_mtime_ns, file.read_text().replace("1", "2")
    file.write_text(told)
    os.utime(file, ns=(time_ns, time_ns))
    assert changed(config, before) == "", "it is trusted"
    os.utime(file, ns=(time_ns + 1, time_ns + 1))
    assert "a.jsonl has changed" in changed(config, before)


def test_what_is_gone_or_was_never_noted_did_not_change(files: Path) -> None:
    before = inputs_of(reward(files), {})
    (files / "a.jsonl").unlink()
    assert changed(reward(files), before) == ""
    assert changed(reward(files), kept_inputs(files)) == ""
