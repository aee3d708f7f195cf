"""How far PPO goes before it games one reward model, and an ensemble's mean less its standard deviation: gold against KL.

On the demo's task, almost without a KL penalty, from few comparisons; gold is a rule that training never sees.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from contract import arguments, publish
from reward_models import demo

from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster
from rlhf_dist.run_folder.console import Console
from rlhf_dist.stages.pipeline import run

REWARDS = {"one": (1, "mean"), "ensemble": (4, "mean-std")}
"""Name to models, and how their rewards are combined."""
SMOOTH = 2
"""Iterations before and after, over which the gold score is averaged."""


def trained(path: Path, models: int, combine: str, *, comparisons: int, iterations: int) -> dict[str, float]:
    """Where the gold score is best on the way, and where it ends."""
    config = demo(
        path,
        iterations,
        task={"comparisons": comparisons},
        reward_model={"models": models},
        reward=[{"path": "stages/reward/reward_model", "combine": combine}],
        algorithm={"kl_coef": 0.01},
    )
    run(config, path, Console())
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    gold, kl = (_smooth([row[key] for row in rows]) for key in ("reward/gold/mean", "objective/kl"))
    peak = max(range(len(gold)), key=lambda number: gold[number])
    return {"gold_at_peak": gold[peak], "kl_at_peak": kl[peak], "gold_at_end": gold[-1], "kl_at_end": kl[-1]}


def _smooth(values: list[float]) -> list[float]:
    return [statistics.mean(values[max(0, n - SMOOTH) : n + SMOOTH + 1]) for n in range(len(values))]


def main() -> None:
    options = arguments(__doc__)
    size = {"comparisons": 64, "iterations": 2} if options.quick else {"comparisons": 2000, "iterations": 40}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, session(Cluster(), cpus=4, gpus=0, namespace="rlhf/ensembles"):
        for name, (models, combine) in REWARDS.items():
            found = trained(Path(folder) / name, models, combine, **size)
            rows.append({"reward": name, **found})
    figures = {f"{key}_{row['reward']}": value for row in rows for key, value in row.items() if key != "reward"}
    publish("ensembles", figures, rows, options.json)


if __name__ == "__main__":
    main()
