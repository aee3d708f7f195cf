"""The command line as a user meets it: in this process, and once in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cli import main
from rlhf_dist.config import DPOConfig, EvaluateConfig, PipelineConfig, RewardConfig, SFTConfig, dump, override
from rlhf_dist.ending import ending_in_words
from rlhf_dist.errors import WorkerLost
from tests.runs import Folders


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command line here: what it imports is imported once."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["rlhf-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def config_file(folders: Folders, tmp_path: Path) -> Path:
    file = tmp_path / "rl.yaml"
    file.write_text(dump(folders.config()))
    return file


def test_in_a_process_of_its_own_bad_input_is_one_message_without_a_traceback(config_file: Path) -> None:
    command = [sys.executable, "-m", "rlhf_dist.cli", "rl", str(config_file), "--set", "rl.itertions=7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "did you mean `rl.iterations`?" in done.stderr
    assert "Traceback" not in done.stderr


def test_resume_from_a_damaged_checkpoint_is_refused_before_anything_is_written(
    cli: Callable[..., Done], config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    learner = run / "checkpoints" / "step-000001" / "learner"
    learner.mkdir(parents=True)
    (learner / "state").write_text("changed")
    (learner.parent / "digests.json").write_text(json.dumps({"learner/state": "0" * 128}))
    kept = {"config.yaml": "policy: as it was\n", "status.json": '{"state": "failed"}'}
    for name, text in kept.items():
        (run / name).write_text(text)
    done = cli("rl", config_file, "--run-dir", run, "--resume")
    assert done.returncode == 2
    assert "learner/state: missing or changed since it was written" in done.stderr
    assert {name: (run / name).read_text() for name in kept} == kept


def test_dry_run_prints_config_placement_and_memory_and_starts_nothing(
    cli: Callable[..., Done], config_file: Path, tmp_path: Path
) -> None:
    done = cli("rl", config_file, "--dry-run", "--set", "rl.iterations=7", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    shown = ("A prompt as the engine is given it", "<bos>|", "generation ends at <eos> (2)")
    for text in ("iterations: 7", "Placement", "learner", "rollout", "MiB", "64 prompts", *shown):
        assert text in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_is_estimated_and_minimised(cli: Callable[..., Done], config_file: Path) -> None:
    done = cli("rl", config_file, "--dry-run")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for text in (
        "What is estimated and minimised",
        "method: ppo (Proximal",
        "policy loss: ratio pi / pi_old clipped",
        "biases: ",
    ):
        assert text in words


def test_algorithms_are_told_side_by_side_and_one_by_one(cli: Callable[..., Done]) -> None:
    table = cli("algorithms")
    assert (table.returncode, table.stderr) == (0, "")
    assert "reinforce_pp_baseline" in table.stdout
    one = cli("algorithms", "dapo")
    assert (one.returncode, "configs/algorithms/dapo.yaml" in one.stdout.replace("\n", "")) == (0, True)
    unknown = cli("algorithms", "dpao")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "did you mean dapo?" in unknown.stderr


@pytest.mark.parametrize("rest", [[], ["configs/ppo.yaml", "--dry-run", "--set", "ppo.epochs=2"], ["--help-me"]])
def test_the_command_of_then_says_what_it_is_called_now(cli: Callable[..., Done], rest: list[str]) -> None:
    done = cli("ppo", *rest)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: `rlhf-dist ppo` is now `rlhf-dist rl`")


def test_plan_fits_or_says_what_does_not(cli: Callable[..., Done], config_file: Path) -> None:
    plan = ("plan", config_file, "--nodes", "2", "--gpus-per-node", "2")
    done = cli(*plan)
    assert done.returncode == 0, done.stderr
    for text in ("1 rollout workers", "learner-0", "activations", "update_weights", "object store", "Bottleneck:"):
        assert text in done.stdout
    small = cli(*plan, "--set", "learner.ranks=2")
    assert small.returncode == 2
    assert "the plan's cluster has 4 GPUs on 2 nodes; the run needs 5 to start" in small.stderr
    shared = cli(*plan, "--set", "learner.ranks=2", "--set", "cluster.placement=hybrid")
    assert shared.returncode == 0, shared.stderr
    full = cli(*plan, "--gpu-memory", "1", "--set", "learner.micro_batch_tokens=1000000")
    assert full.returncode == 1
    assert "Does not fit: node 0 device 0 (learner-0)" in full.stdout


def test_show_and_logs_and_status_say_what_is_missing(cli: Callable[..., Done], tmp_path: Path) -> None:
    shown = cli("show", tmp_path)
    assert (shown.returncode, "no samples; they are kept with" in shown.stderr) == (2, True)
    logs = cli("logs", tmp_path)
    assert (logs.returncode, "no logs; expected a run folder" in logs.stderr) == (2, True)
    status = cli("status", tmp_path / "nowhere", "--address", "127.0.0.1:1", "--once")
    assert (status.returncode, "no Ray cluster answers there" in status.stderr) == (2, True)


BAD = {
    "unknown key": (["--set", "rl.itertions=7"], "unknown key `rl.itertions`; did you mean `rl.iterations`?"),
    "wrong type": (["--set", "rl.iterations=many"], "`rl.iterations` is 'many'; expected:"),
    "missing model": (["--set", "policy=/nowhere/model"], "/nowhere/model: no such folder"),
    "long prompt": (["--set", "prompts.max_tokens=5"], "prompts.jsonl:1: the prompt has"),
    "positions": (["--set", "rollout.max_new_tokens=200"], "128 positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(cli: Callable[..., Done], case: str, config_file: Path) -> None:
    changes, message = BAD[case]
    done = cli("rl", config_file, *changes)
    assert done.returncode == 2
    assert message in done.stderr


def test_different_tokenizers_are_named(
    cli: Callable[..., Done], folders: Folders, config_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "reward"
    other.mkdir()
    for file in folders.reward.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tree = json.loads((other / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": len(tree["model"]["vocab"]) + 5, "content": "<odd>"})
    (other / "tokenizer.json").write_text(json.dumps(tree))
    done = cli("rl", config_file, "--set", f"reward={other}")
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
    cli: Callable[..., Done], content: str, message: str, config_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "bad.jsonl"
    prompts.write_text(content)
    done = cli("rl", config_file, "--set", f"prompts.path={prompts}")
    assert done.returncode == 2
    assert str(prompts) in done.stderr
    assert message in done.stderr


def test_a_folder_that_holds_a_run_is_not_overwritten(
    cli: Callable[..., Done], config_file: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    (held / "config.yaml").write_text("seed: 1\n")
    done = cli("rl", config_file, "--run-dir", held)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (held / "config.yaml").read_text() == "seed: 1\n"


def test_a_round_goes_on_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf-dist", "again", "my run", "--prompts", "8"])
    with pytest.raises(typer.Exit), ending_in_words(Path("my run")):
        raise WorkerLost("rollout-0 died")
    assert capsys.readouterr().err == "the run failed: rollout-0 died; to go on: rlhf-dist again 'my run' --prompts 8\n"


EVERY = ("sft", "reward", "dpo", "rl", "pipeline", "demo", "evaluate")


@pytest.mark.parametrize("command", EVERY)
def test_a_folder_that_cannot_be_written_is_one_message_before_anything_is_read(
    cli: Callable[..., Done], command: str, folders: Folders, config_file: Path, tmp_path: Path
) -> None:
    made = {
        "sft": SFTConfig(model="a"),
        "reward": RewardConfig(model="a"),
        "dpo": DPOConfig(model="a"),
        "evaluate": EvaluateConfig(policies={"a": "a", "b": "b"}, reward="r", prompts={"path": "p"}),
        "pipeline": PipelineConfig.model_validate(pipeline_tree(folders)),
    }
    file = tmp_path / "config.yaml"
    file.write_text(dump(made[command]) if command in made else config_file.read_text())
    done = cli(command, *([] if command == "demo" else [file]), "--run-dir", "/proc/nowhere/run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: /proc/nowhere/run: cannot be written: No such file or directory; ")


@pytest.mark.parametrize("command", [["rl"], ["pipeline"]])
def test_a_resume_that_is_refused_leaves_every_byte_as_it_was(
    cli: Callable[..., Done], command: list[str], folders: Folders, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints" / "step-000002"
    config = folders.config(policy=str(run / "stages/sft/model")) if command == ["pipeline"] else folders.config()
    with complete_or_absent(folder) as aside:
        (aside / "learner").mkdir(parents=True)
        (aside / "state.json").write_text('{"iteration": 2, "kl_coef": 0.1}')
        (aside / "run.yaml").write_text(dump(override(config, ["seed=3", f"run_dir={run}"])))
    (run / "config.yaml").write_text(dump(config))
    (run / "status.json").write_text('{"state": "failed"}')
    (run / "metrics.jsonl").write_text('{"iteration": 0}\n{"iter')
    (run / "checkpoints" / ".step-000003.partial").write_text("left")
    file = tmp_path / "config.yaml"
    tree = config if command == ["rl"] else PipelineConfig.model_validate(pipeline_tree(folders))
    file.write_text(dump(tree))
    before = snapshot(run)
    done = cli(*command, file, "--run-dir", run, "--resume")
    assert done.returncode == 2
    assert "seed was 3 and is now 0" in done.stderr
    assert snapshot(run) == before


def pipeline_tree(folders: Folders) -> dict[str, object]:
    config = folders.config().model_dump(mode="json")
    data = str(folders.prompts)
    return {
        **{key: config[key] for key in ("prompts", "rl", "algorithm", "rollout", "learner")},
        "policy": str(folders.policy),
        "sft": {"data": {"path": data}},
        "reward_model": {"data": [{"path": data}]},
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
