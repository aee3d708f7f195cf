"""Where an iteration's metrics go. metrics.jsonl always; wandb and TensorBoard on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlhf_dist.config import Telemetry


class Tracker(Protocol):
    """Takes the metrics of one iteration after the other."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""

    def finish(self) -> None:
        """Write out what is left."""


class JsonlTracker:
    """One JSON object per line and iteration, written through at once."""

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._file = path.open("a")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        self._file.write(json.dumps({"iteration": iteration, **metrics}) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """Weights & Biases; offline without an API key, so that it neither asks nor waits."""

    def __init__(self, folder: Path, *, project: str, config: dict[str, Any]) -> None:
        """Start a wandb run whose files lie in `folder`."""
        import wandb

        known = bool(os.environ.get("WANDB_API_KEY"))
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if known else "offline")
        settings = wandb.Settings(silent=True, console="off", init_timeout=30)
        self._run = wandb.init(
            project=project, dir=str(folder), name=folder.name, config=config, mode=mode, settings=settings
        )

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        self._run.log(dict(metrics), step=iteration)

    def finish(self) -> None:
        """Close the wandb run."""
        self._run.finish()


class TensorBoardTracker:
    """TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        """Write events into `folder`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def finish(self) -> None:
        """Close the event file."""
        self._writer.close()


def trackers(run_dir: Path, settings: Telemetry, config: dict[str, Any]) -> list[Tracker]:
    """The trackers that a run asked for."""
    made: list[Tracker] = [JsonlTracker(run_dir / "metrics.jsonl")]
    if settings.wandb:
        made.append(WandbTracker(run_dir, project=settings.project, config=config))
    if settings.tensorboard:
        made.append(TensorBoardTracker(run_dir / "tensorboard"))
    return made
