import re
from pathlib import Path

from rlhf_dist.telemetry.ray_metrics import ITERATION, METRICS

ROOT = Path(__file__).parents[2]


def test_the_launch_readme_documents_every_metric_and_no_other() -> None:
    lines = (ROOT / "launch" / "README.md").read_text().splitlines()
    assert {line.split("`")[1] for line in lines if line.startswith("| `rlhf_")} == set(METRICS)


def test_the_grafana_dashboard_shows_only_metrics_that_exist() -> None:
    board = (ROOT / "launch" / "monitoring" / "grafana_dashboard.json").read_text()
    assert set(re.findall(r"ray_(rlhf_\w+)", board)) <= set(METRICS)
    assert set(ITERATION) <= set(METRICS)
