"""The command line as a user meets it, in processes of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_dist.config import dump
from tests.integration.runs import Folders


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_dist.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=560, check=False)


@pytest.fixture
def config_file(folders: Folders, tmp_path: Path) -> Path:
    file = tmp_path / "ppo.yaml"
    file.write_text(dump(folders.config()))
    return file


def test_dry_run_prints_config_placement_and_memory_and_starts_nothing(config_file: Path, tmp_path: Path) -> None:
    done = cli("ppo", config_file, "--dry-run", "--set", "ppo.iterations=7", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for text in ("iterations: 7", "Placement", "learner", "rollout", "MiB", "64 prompts"):
        assert text in done.stdout
    assert not (tmp_path / "run").exists()


def test_plan_fits_or_says_what_does_not(config_file: Path) -> None:
    plan = ("plan", config_file, "--nodes", "2", "--gpus-per-node", "2")
    done = cli(*plan)
    assert done.returncode == 0, done.stderr
    for text in ("Placement: 1 rollout workers", "learner-0", "activations", "update_weights", "Bottleneck:"):
        assert text in done.stdout
    small = cli(*plan, "--set", "learner.ranks=2")
    assert small.returncode == 2
    assert "the plan's cluster has 4 GPUs on 2 nodes; the run needs 5 to start" in small.stderr
    shared = cli(*plan, "--set", "learner.ranks=2", "--set", "cluster.placement=hybrid")
    assert shared.returncode == 0, shared.stderr
    full = cli(*plan, "--gpu-memory", "1", "--set", "learner.micro_batch_tokens=1000000")
    assert full.returncode == 1
    assert "Does not fit: node 0 device 0 (learner-0)" in full.stdout


def test_show_and_logs_and_status_say_what_is_missing(tmp_path: Path) -> None:
    shown = cli("show", tmp_path)
    assert (shown.returncode, "no samples; they are kept with" in shown.stderr) == (2, True)
    logs = cli("logs", tmp_path)
    assert (logs.returncode, "no logs; expected a run folder" in logs.stderr) == (2, True)
    status = cli("status", tmp_path / "nowhere", "--address", "127.0.0.1:1", "--once")
    assert (status.returncode, "no Ray cluster answers there" in status.stderr) == (2, True)


BAD = {
    "unknown key": (["--set", "ppo.itertions=7"], "unknown key `ppo.itertions`; did you mean `ppo.iterations`?"),
    "wrong type": (["--set", "ppo.iterations=many"], "`ppo.iterations` is 'many'; expected:"),
    "missing model": (["--set", "policy=/nowhere/model"], "/nowhere/model: no such folder"),
    "long prompt": (["--set", "prompts.max_tokens=5"], "prompts.jsonl:1: the prompt has"),
    "positions": (["--set", "rollout.max_new_tokens=200"], "128 positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case: str, config_file: Path) -> None:
    changes, message = BAD[case]
    done = cli("ppo", config_file, *changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_different_tokenizers_are_named(folders: Folders, config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "reward"
    other.mkdir()
    for file in folders.reward.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tree = json.loads((other / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": len(tree["model"]["vocab"]) + 5, "content": "<odd>"})
    (other / "tokenizer.json").write_text(json.dumps(tree))
    done = cli("ppo", config_file, "--set", f"reward={other}")
    assert done.returncode == 2
    assert "has another tokenizer than the policy" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"prompt": "a"}\nnot json\n', ":2: not valid JSON"),
        ('{"text": "a"}\n', "expected `prompt`"),
    ],
)
def test_bad_prompt_files_are_named_with_their_line(
    content: str, message: str, config_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "bad.jsonl"
    prompts.write_text(content)
    done = cli("ppo", config_file, "--set", f"prompts.path={prompts}")
    assert done.returncode == 2
    assert str(prompts) in done.stderr
    assert message in done.stderr


def test_a_folder_that_holds_a_run_is_not_overwritten(config_file: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    (held / "config.yaml").write_text("seed: 1\n")
    done = cli("ppo", config_file, "--run-dir", held)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (held / "config.yaml").read_text() == "seed: 1\n"


def test_demo_goes_through_all_stages_and_leaves_a_judged_run(tmp_path: Path) -> None:
    changes = {
        "ppo.iterations": 2,
        "ppo.prompts_per_iteration": 16,
        "task.demonstrations": 288,
        "task.comparisons": 192,
        "task.scores": 64,
        "task.comments": 64,
        "prompts.held_out_limit": 16,
        "telemetry.wandb": "true",
        "telemetry.tensorboard": "true",
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    done = cli("demo", "--run-dir", tmp_path / "run", "--seed", 3, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seed"] == 3
    assert 0.0 <= summary["gold_win_rate"] <= 1.0
    for stage in ("sft", "judge", "reward"):
        assert json.loads((tmp_path / "run" / "stages" / stage / "summary.json").read_text())["stage"] == stage
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    again = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert again["gold_judge"] == "rlhf_dist.data.helpdesk:gold_score"
