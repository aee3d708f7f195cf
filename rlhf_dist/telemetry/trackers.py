"""Where an iteration's metrics go. metrics.jsonl and Ray's exporter always; wandb, TensorBoard and MLflow on request."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlhf_dist.config import flat
from rlhf_dist.files import as_json, storing
from rlhf_dist.secrets import masked
from rlhf_dist.telemetry.ray_metrics import RayMetricsTracker

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
"""The file that every run has, whatever other trackers it asks for."""


class Tracker(Protocol):
    """Takes the metrics of one iteration after the other."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""

    def finish(self) -> None:
        """Write out what is left."""


class JsonlTracker:
    """One JSON object per line and iteration, on the disk before a checkpoint counts on it, and never a part of one."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, in a folder that is there."""
        self._path = path

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration.

        Raises:
            StorageError: the disk is full, read-only or gone.
        """
        line = (as_json({"iteration": iteration, **metrics}) + "\n").encode()
        with storing(self._path), self._path.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise

    def finish(self) -> None:
        """Nothing is left to write."""


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

    def __init__(self, folder: Path, *, first: int = 0) -> None:
        """Write events into `folder`, in place of those from iteration `first` on, which a resumed run does again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def finish(self) -> None:
        """Close the event file."""
        self._writer.close()


class MlflowTracker:
    """MLflow: the server that MLFLOW_TRACKING_URI names, else files in the run folder."""

    def __init__(self, folder: Path, *, project: str, config: dict[str, Any]) -> None:
        """Start an MLflow run of the experiment `project`."""
        from mlflow import MlflowClient

        # Without a server there is only MLflow's plain file store, which it wants to be asked for.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in flat(config).items():
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        measured = [Metric(name, value, now, iteration) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=measured)

    def finish(self) -> None:
        """Close the MLflow run."""
        self._client.set_terminated(self._run)


class Unbreakable:
    """Another tracker whose failures are said once, in the log, and never stop a run."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        """Make the tracker, if it can be made."""
        self._name = name
        self._tracker: Tracker | None = None
        self._attempt(lambda: setattr(self, "_tracker", make()))

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration."""
        self._attempt(lambda: self._tracker.log(iteration, metrics) if self._tracker else None)

    def finish(self) -> None:
        """Write out what is left."""
        self._attempt(lambda: self._tracker.finish() if self._tracker else None)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - other people's services may fail in any way
            log.warning("%s is given up for this run: %s: %s", self._name, type(error).__name__, masked(str(error)))
            self._tracker = None


def trackers(run_dir: Path, config: Any, *, first: int = 0) -> list[Tracker]:
    """metrics.jsonl, whose failure is the run's, then those that the config's `telemetry` asks for, and Ray's metrics.

    Args:
        run_dir: the run folder.
        config: with a `telemetry` section.
        first: iteration that is logged next.
    """
    settings, tree = config.telemetry, config.model_dump(mode="json")
    asked: dict[str, tuple[bool, Callable[[], Tracker]]] = {
        "wandb": (settings.wandb, lambda: WandbTracker(run_dir, project=settings.project, config=tree)),
        "TensorBoard": (settings.tensorboard, lambda: TensorBoardTracker(run_dir / "tensorboard", first=first)),
        "MLflow": (settings.mlflow, lambda: MlflowTracker(run_dir, project=settings.project, config=tree)),
        "Ray's metrics": (True, RayMetricsTracker),
    }
    made = [Unbreakable(name, make) for name, (wanted, make) in asked.items() if wanted]
    return [JsonlTracker(run_dir / METRICS), *made]
