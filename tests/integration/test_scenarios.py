"""Every embedded task from random weights through SFT, reward model and PPO, at reduced size."""

import json
from pathlib import Path

import pytest

from rlhf_dist.config import PipelineConfig, load
from rlhf_dist.run_folder.console import Console
from rlhf_dist.stages.pipeline import run
from tests.stages.test_pipeline import CONFIGS, NAMES, SMALL


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_runs_from_random_weights_to_a_judged_policy(name: str, ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / name
    run(load(PipelineConfig, CONFIGS / f"{name}.yaml", SMALL), path, Console())
    report = (path / "report.html").read_text()
    for title in ("Supervised fine-tuning", "A reward model from people", "Over-optimisation", "Calibration"):
        assert title in report
    summary = json.loads((path / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert 0 <= summary["gold_score_before"] <= 1
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    assert {"reward/reward/mean", "reward/gold/mean"} <= row.keys()
