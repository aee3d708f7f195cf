"""How each fault is done to a run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from rlhf_dist.chaos.schedule import Fault
from rlhf_dist.chaos.server import LyingServer
from rlhf_dist.chaos.sight import Sight, lives, until
from rlhf_dist.checkpoint import newest_checkpoint
from rlhf_dist.run_folder.names import METRICS

ENGINE = "VLLM::"
"""How the titles of the processes in which vLLM computes begin; it has helpers, too, that nobody waits for."""
GONE_S = 60.0
"""Within which the actors have noticed that their driver was killed."""


@dataclass(frozen=True)
class Hit:
    """What was done."""

    what: str
    victim: psutil.Process | None = None
    """The process that the run has to do without."""


@dataclass(frozen=True)
class Grounds:
    """What faults are done to."""

    sight: Sight
    server: LyingServer
    lies: int
    pause_s: float
    """Longer than an actor may be silent."""


def inject(fault: Fault, grounds: Grounds) -> Hit | None:
    """Do it; None while there is nobody to do it to."""
    if fault.does == "server":
        grounds.server.lie(fault.target, grounds.lies)
        return Hit(f"{grounds.lies} requests: {fault.target}")
    if fault.does in ("flip", "cut", "tear"):
        return _damage(fault, grounds.sight)
    if fault.target == "driver":
        return _to_driver(fault, grounds)
    find = _VICTIMS.get(fault.target)
    victims = find(grounds.sight) if find else grounds.sight.actors(fault.target)
    if not victims:
        return None
    victim = victims[int(fault.choice * len(victims))]
    number = signal.SIGKILL if fault.does == "kill" else signal.SIGSTOP
    os.kill(victim.pid, number)
    return Hit(f"{number.name} to {fault.target}, process {victim.pid}", victim)


def _engines(sight: Sight) -> list[psutil.Process]:
    children = [child for worker in sight.actors("rollout") for child in worker.children(recursive=True)]
    return [child for child in children if lives(child) and _title(child).startswith(ENGINE)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _daemons(name: str, sight: Sight) -> list[psutil.Process]:
    children = psutil.Process(sight.driver.pid).children()
    return [child for child in children if child.name() == name and lives(child)]


_VICTIMS: dict[str, Callable[[Sight], list[psutil.Process]]] = {
    "engine": _engines,
    "raylet": partial(_daemons, "raylet"),
    "gcs": partial(_daemons, "gcs_server"),
}
"""How processes are found that do not log under their role."""


def _to_driver(fault: Fault, grounds: Grounds) -> Hit:
    driver = grounds.sight.driver
    if fault.does == "pause":
        driver.send_signal(signal.SIGSTOP)
        time.sleep(grounds.pause_s)
        driver.send_signal(signal.SIGCONT)
        return Hit(f"SIGSTOP to the driver, SIGCONT after {grounds.pause_s:g} s")
    number = signal.SIGKILL if fault.does == "kill" else signal.SIGTERM
    driver.send_signal(number)
    return Hit(f"{number.name} to the driver")


def _damage(fault: Fault, sight: Sight) -> Hit:
    """Kill the driver, and when nobody writes any more damage what was left, as a failing disk or a power cut would."""
    sight.driver.kill()
    until(lambda: not sight.writing(), timeout_s=GONE_S)
    if fault.does == "tear":
        file = sight.path / METRICS
        with file.open("ab") as stream:
            stream.write(b'{"iteration": 1' if fault.choice < 0.5 else b"\0" * 512)
        return Hit(f"SIGKILL to the driver; {METRICS} ends in half a line")
    newest = newest_checkpoint(sight.path)
    if newest is None:
        return Hit("SIGKILL to the driver; there was no checkpoint to damage")
    files = sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size)
    file = files[int(fault.choice * len(files))]
    what = _flip(file, fault.choice) if fault.does == "flip" else _cut(file)
    return Hit(f"SIGKILL to the driver; {file.relative_to(sight.path)}: {what}")


def _flip(file: Path, choice: float) -> str:
    place = int(choice * file.stat().st_size)
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    return f"a bit of byte {place} flipped"


def _cut(file: Path) -> str:
    size = file.stat().st_size
    os.truncate(file, size // 2)
    return f"cut to {size // 2} of {size} bytes"
