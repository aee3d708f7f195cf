"""What a long run leaks: memory, file descriptors and shared memory of every process, and whether it becomes slower.

A run of many tiny iterations is looked at every half second from outside, until its last iteration is done. Slopes are least
squares over the second half of what was seen. /dev/shm is the machine's: what other programs put there counts, too.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from contract import arguments, publish
from tiny_run import config_file, started

ITERATIONS, QUICK = 300, 30
EDGE = 50
"""Iterations at either end whose throughput is compared."""
WARM = 10
LOOK_S = 0.5
MIB = 2**20


class Process(NamedTuple):
    """One process at one moment."""

    kind: str
    rss_mib: float
    files: int
    cpu_s: float


class Look(NamedTuple):
    """The run at one moment."""

    iteration: int
    processes: dict[int, Process]
    """By process id."""
    shm_mib: float


def kind_of(process: psutil.Process) -> str:
    """What it is: Ray names a worker after the call that it is at, and its daemons in Python after their file."""
    line: list[str] = process.cmdline() or [process.name()]
    if line[0].startswith("ray::"):
        return line[0].split(".")[0].split()[0]
    scripts = [word for word in line if word.endswith(".py")]
    return Path((scripts or line)[0].split()[0]).name


def look(driver: psutil.Process, iteration: int) -> Look:
    """At all processes of the run."""
    found = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            kind, cpu = "driver" if process == driver else kind_of(process), process.cpu_times()
            used = process.memory_info().rss / MIB, process.num_fds(), cpu.user + cpu.system
            found[process.pid] = Process(kind, *used)
        except psutil.Error:
            continue
    return Look(iteration, found, psutil.disk_usage("/dev/shm").used / MIB)


def watched(file: Path, run_dir: Path, iterations: int) -> tuple[list[Look], list[psutil.Process]]:
    """The run at all moments of its training, and the processes that outlive it."""
    child = started(file, run_dir)
    driver, metrics = psutil.Process(child.pid), run_dir / "metrics.jsonl"
    looks: list[Look] = []
    everybody = {driver}
    while child.poll() is None:
        done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        everybody |= {*driver.children(recursive=True)}
        if 0 < done < iterations:
            looks.append(look(driver, done))
        time.sleep(LOOK_S)
    assert child.returncode == 0, run_dir.with_suffix(".txt").read_text()[-2000:]
    time.sleep(5.0)
    return looks, [each for each in everybody if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def slopes(looks: list[Look]) -> list[dict[str, Any]]:
    """Per hundred iterations, MiB and open files of each process that is there all through the second half."""
    half = looks[len(looks) // 2 :]
    series: dict[int, list[tuple[int, Process]]] = defaultdict(list)
    for each in half:
        for pid, process in each.processes.items():
            series[pid].append((each.iteration, process))
    rows = [
        {
            "process": told[-1][1].kind,
            "MiB at the end": told[-1][1].rss_mib,
            "MiB/100": slope([(iteration, process.rss_mib) for iteration, process in told]),
            "files at the end": told[-1][1].files,
            "files/100": slope([(iteration, process.files) for iteration, process in told]),
        }
        for told in series.values()
        if len(told) == len(half)
    ]
    return sorted(rows, key=lambda row: -row["MiB/100"])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares, per hundred."""
    return 100 * float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])


def cpu_last_over_first(looks: list[Look], edge: int) -> float:
    """Processor seconds of an iteration, of all processes that are there from first to last; no neighbour lengthens these."""
    always = set.intersection(*({*each.processes} for each in looks))
    at = [each.iteration for each in looks]
    spent = [sum(each.processes[pid].cpu_s for pid in always) for each in looks]
    first, last = (WARM, WARM + edge), (at[-1] - edge, at[-1])
    begun, ended = (np.diff(np.interp(span, at, spent))[0] for span in (first, last))
    return float(ended / begun)


def main() -> None:
    """The run, then slopes and what is left."""
    asked = arguments(__doc__ or "")
    iterations = QUICK if asked.quick else ITERATIONS
    with tempfile.TemporaryDirectory() as folder:
        root, before = Path(folder), psutil.disk_usage("/dev/shm").used / MIB
        file = config_file(root, iterations=iterations, checkpoint_every=20)
        looks, left = watched(file, root / "run", iterations)
        after = psutil.disk_usage("/dev/shm").used / MIB
        steps = [json.loads(line)["timing_s/step"] for line in (root / "run/metrics.jsonl").read_text().splitlines()]
    edge = min(EDGE, (len(steps) - WARM) // 2)
    rows = slopes(looks)
    figures = {
        "iterations": float(len(steps)),
        "looks": float(len(looks)),
        "processes": float(len(rows)),
        "rss_mib_per_100": max(row["MiB/100"] for row in rows),
        "rss_mib_per_100_gcs": max(row["MiB/100"] for row in rows if row["process"] == "gcs_server"),
        "rss_mib_per_100_without_gcs": max(row["MiB/100"] for row in rows if row["process"] != "gcs_server"),
        "files_per_100": max(row["files/100"] for row in rows),
        "shm_mib_per_100": slope([(each.iteration, each.shm_mib) for each in looks[len(looks) // 2 :]]),
        "shm_mib_left": after - before,
        "processes_left": float(len(left)),
        "throughput_last_over_first": sum(steps[WARM : WARM + edge]) / sum(steps[-edge:]),
        "cpu_last_over_first": cpu_last_over_first(looks, edge),
    }
    publish("steady", figures, rows, asked.json)


if __name__ == "__main__":
    main()
