"""Every embedded task from random weights through SFT, reward model and PPO, at reduced size."""

import json
from pathlib import Path

import pytest

from rlhf_dist.run_folder.console import Console
from rlhf_dist.stages.pipeline import run
from tests.stages.test_pipeline import NAMES, small


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_runs_from_random_weights_to_a_judged_policy(name: str, ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / name
    config = small(name)
    run(config, path, Console())
    report = (path / "report.html").read_text()
    own = ("A reward model from people", "Calibration") if config.trains_reward_model else ()
    for title in ("Supervised fine-tuning", "Over-optimisation", *own):
        assert title in report
    summary = json.loads((path / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert 0 <= summary["gold_score_before"] <= 1
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    assert {f"reward/{config.reward[0].name}/mean", "reward/gold/mean"} <= row.keys()
