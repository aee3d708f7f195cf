"""Every embedded task from random weights through SFT, reward model and PPO, at reduced size, and its evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster, PipelineConfig, load, override
from rlhf_dist.errors import ConfigError
from rlhf_dist.stages import evaluate
from rlhf_dist.stages.feedback_sample import Wanted, sample
from rlhf_dist.stages.pipeline import run
from rlhf_dist.telemetry.console import Console
from rlhf_dist.telemetry.run_folder import RunFolder

SCENARIOS = Path(__file__).parents[2] / "configs" / "scenarios"
SMALL = [
    "task.prompts=64",
    "task.demonstrations=256",
    "task.comparisons=256",
    "model={hidden: 64, layers: 2, heads: 2, positions: 128}",
    "sft.epochs=1",
    "reward_model.epochs=1",
    "reward_model.normalise_on=16",
    "prompts.held_out_limit=8",
    "ppo.iterations=2",
    "ppo.prompts_per_iteration=16",
    "rollout.engine=transformers",
    "learner.threads=1",
]


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(Cluster(), cpus=4, gpus=0, namespace="rlhf/pipelines"):
        yield


def finished(path: Path) -> dict[str, float]:
    assert all((path / "stages" / name / "summary.json").exists() for name in ("sft", "reward"))
    report = (path / "report.html").read_text()
    for title in ("Supervised fine-tuning", "A reward model from people", "Over-optimisation", "Calibration"):
        assert title in report
    return json.loads((path / "summary.json").read_text())


@pytest.mark.parametrize("name", sorted(file.stem for file in SCENARIOS.glob("*.yaml") if file.stem != "dialogue"))
def test_a_scenario_runs_from_random_weights_to_a_judged_policy(name: str, tmp_path: Path) -> None:
    config = load(PipelineConfig, SCENARIOS / f"{name}.yaml", SMALL)
    summary = finished(run(config, tmp_path / "run", Console()))
    assert summary["iterations"] == 2
    assert 0 <= summary["gold_score_before"] <= 1
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"reward/reward/mean", "reward/gold/mean"} <= row.keys()


def test_the_dialogue_uses_every_part_goes_on_where_it_was_and_is_evaluated(tmp_path: Path) -> None:
    parts = [
        "task.scores=64",
        "task.comments=64",
        "judge.epochs=1",
        "reward_model.heads=2",
        "reward=[{path: stages/reward/reward_model, combine: mean-std}, "
        "{kind: function, name: brief, path: 'tests.integration.test_pipeline:brevity', weight: 0.1}]",
        "safety={forbidden: [password], longest: 40, cap: -2}",
        "ppo.ptx_coef=0.5",
        "ppo.stop_on={kl_above: 1.0e-9}",
    ]
    path = tmp_path / "run"
    config = load(PipelineConfig, SCENARIOS / "dialogue.yaml", [*SMALL, *parts])
    summary = finished(run(config, path, Console()))
    assert summary["iterations"] == 2
    assert "above ppo.stop_on.kl_above" in summary["stopped"]
    assert (path / "stages" / "reward" / "comments.jsonl").read_text().count("\n") > 50
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    for part in ("reward", "reward_disagreement", "brief", "gold", "unsafe", "unsafe_forbidden", "unsafe_length"):
        assert f"reward/{part}/mean" in row
    assert row["actor/ptx_loss"] > 0

    before = (path / "summary.json").stat().st_mtime_ns
    run(config, path, Console())
    assert (path / "summary.json").stat().st_mtime_ns == before, "everything is finished"
    with pytest.raises(ConfigError, match=r"stages/sft was made with epochs = 1, the config now says 2"):
        run(override(config, ["sft.epochs=2"]), path, Console())
    with pytest.raises(ConfigError, match=r"was made with ppo.kl_coef = 0.1, the config now says 0.2"):
        run(override(config, ["ppo.kl_coef=0.2"]), path, Console())
    with pytest.raises(ConfigError, match=r"was made with task.comparisons = 256, the config now says 300"):
        run(override(config, ["task.comparisons=300"]), path, Console())
    assert load(PipelineConfig, path / "pipeline.yaml") == config, "a refused config leaves no trace"

    asked = evaluate.config_of_run(path)
    made = evaluate.run(
        asked, evaluate.prepare(asked), RunFolder(Path(asked.run_dir), asked, console=Console(), stage="evaluation")
    )
    start, trained = made
    assert start.means["kl"].mean == pytest.approx(0.0, abs=1e-4), "the reference is the start"
    assert trained.means["kl"].mean != 0
    assert set(trained.wins) == {"gold", "reward"}
    assert {"distinct_1", "self_bleu", "perplexity"} <= trained.figures.keys()
    assert len((Path(asked.run_dir) / "answers.jsonl").read_text().splitlines()) == 16

    tasks = sample(Wanted(path, against="sft", kind="comparison", prompts=8, seed=1))
    assert {task.source_a for task in tasks} | {task.source_b for task in tasks} == {"policy", "sft"}
    assert all(task.a != task.b for task in tasks)
    assert sample(Wanted(path, against="sft", kind="comparison", prompts=8, seed=1)) == tasks, (
        "the same seed, the same tasks"
    )


def brevity(prompt: str, answer: str) -> float:
    return 1 / (1 + len(answer.split()))
