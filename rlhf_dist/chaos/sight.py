"""A run seen from outside: its driver, its processes, what it has recorded and said."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rlhf_dist.chaos.schedule import Moment
from rlhf_dist.files import parsed, whole_lines
from rlhf_dist.run_folder.names import METRICS
from rlhf_dist.telemetry.logs import FOLDER, read_new

POLL_S = 0.02
LOOK_S = 0.5
"""Seconds between two looks at the table of processes."""
SIGNS: dict[tuple[str, str], Moment] = {
    ("rollout", "pulled weights"): "generating",
    ("rollout", "generated"): "scoring",
    ("learner", "updated"): "publishing",
    ("controller", "iteration done"): "between",
}
"""The log lines that say where in an iteration a run is."""


def lives(process: psutil.Process) -> bool:
    """Whether it is this process still, and no zombie."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def role_of(line: Mapping[str, Any]) -> str:
    """The role of the actor that logged a line."""
    return str(line["actor"]).split("-")[0]


def until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait for something; False if it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Sight:
    """One run and all processes that it ever had, also over several drivers."""

    def __init__(self, config: Path, path: Path, said: Path) -> None:
        """Nothing runs yet.

        Args:
            config: YAML file of an RL run.
            path: the run's folder.
            said: folder for what each driver writes to the terminal.
        """
        self.path = path
        self._drivers: list[subprocess.Popen[bytes]] = []
        self.seen: set[psutil.Process] = set()
        self.lines: list[dict[str, Any]] = []
        """Of all logs, in the order in which they were read."""
        self._command = [sys.executable, "-m", "rlhf_dist.cli", "rl", str(config), "--run-dir", str(path)]
        self._said, self._offsets, self._looked = said, dict[Path, int](), 0.0

    def start(self, *, resume: bool = False) -> None:
        """Start a driver, in a session of its own."""
        self._said.mkdir(parents=True, exist_ok=True)
        command = [*self._command, *(["--resume"] if resume else [])]
        with (self._said / f"driver-{len(self._drivers)}.txt").open("wb") as output:
            driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self._drivers.append(driver)
        self.seen.add(psutil.Process(driver.pid))

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """The driver that runs, or ran last."""
        return self._drivers[-1]

    @property
    def said(self) -> list[str]:
        """What that driver wrote to the terminal: lines that are not empty."""
        text = (self._said / f"driver-{len(self._drivers) - 1}.txt").read_text(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    @property
    def exit_code(self) -> int | None:
        """Of the driver; None while it runs."""
        return self.driver.poll()

    def look(self) -> None:
        """Take note of new log lines and, not too often, of processes."""
        if (self.path / FOLDER).is_dir():
            self.lines += read_new(self.path / FOLDER, self._offsets)
        if time.monotonic() - self._looked < LOOK_S or self.exit_code is not None:
            return
        self._looked = time.monotonic()
        try:
            self.seen.update(psutil.Process(self.driver.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def rows(self) -> list[dict[str, Any]]:
        """What is recorded, in whole lines."""
        file = self.path / METRICS
        data = file.read_bytes() if file.exists() else b""
        return [parsed(line, str(file)) for line in whole_lines(data) if line.strip()]

    def recorded(self) -> int:
        """How many iterations are recorded; asked often, so it reads no line."""
        file = self.path / METRICS
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def actors(self, role: str) -> list[psutil.Process]:
        """Living processes of a role, of the oldest first: those that have logged under its name."""
        pids = {str(line["actor"]): int(line["pid"]) for line in self.lines if role_of(line) == role}
        found = []
        for pid in pids.values():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        self.seen.update(found)
        return [process for process in found if lives(process)]

    def moment_came(self, moment: Moment, since: int) -> bool:
        """Whether there is a sign of a moment among the log lines from `since` on, or a checkpoint half written."""
        if moment == "saving":
            return any((self.path / "checkpoints").glob(".*.partial"))
        return any(SIGNS.get((role_of(line), line["message"])) == moment for line in self.lines[since:])

    def left(self) -> list[psutil.Process]:
        """Processes of the run that live."""
        return [process for process in self.seen if lives(process)]

    def writing(self) -> list[psutil.Process]:
        """Those of them that write into the run's folder; Ray's agents, which outlive a killed driver for a while, do not."""
        pids = {int(line["pid"]) for line in self.lines}
        return [process for process in self.left() if process.pid in pids]

    def end(self) -> None:
        """Kill whatever lives."""
        for process in self.left():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for driver in self._drivers:
            driver.wait()
