"""What a long run leaks: memory, file descriptors and shared memory of every process, and whether it becomes slower.

A run of many tiny iterations is looked at every half second from outside. Slopes are least squares over its second half.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from contract import arguments, publish
from tiny_run import config_file, started

ITERATIONS, QUICK = 300, 30
EDGE = 50
"""Iterations at either end whose throughput is compared."""
WARM = 10
MIB = 2**20


def look(driver: psutil.Process) -> dict[str, tuple[float, int]]:
    """Resident MiB and open files of each process of the run, by what it is."""
    found = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name = (process.cmdline() or [process.name()])[0].rpartition("/")[2] if process != driver else "driver"
            found[f"{name} {process.pid}"] = process.memory_info().rss / MIB, process.num_fds()
        except psutil.Error:
            continue
    return found


def watched(
    file: Path, run_dir: Path
) -> tuple[list[tuple[int, dict[str, tuple[float, int]], float]], list[psutil.Process]]:
    """Iteration, processes and MiB in /dev/shm at each look; and all processes ever seen."""
    child = started(file, run_dir)
    driver, metrics = psutil.Process(child.pid), run_dir / "metrics.jsonl"
    looks: list[tuple[int, dict[str, tuple[float, int]], float]] = []
    everybody = {driver}
    while child.poll() is None:
        done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if done:
            looks.append((done, look(driver), psutil.disk_usage("/dev/shm").used / MIB))
            everybody |= {*driver.children(recursive=True)}
        time.sleep(0.5)
    assert child.returncode == 0, run_dir.with_suffix(".txt").read_text()[-2000:]
    time.sleep(5.0)
    return looks, [each for each in everybody if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def slopes(looks: list[tuple[int, Any, float]]) -> dict[str, tuple[float, float]]:
    """Per hundred iterations, MiB and open files of each process that is there all through the second half."""
    half = looks[len(looks) // 2 :]
    series: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    for iteration, processes, _ in half:
        for name, (rss, fds) in processes.items():
            series[name].append((iteration, rss, fds))
    whole = {name: told for name, told in series.items() if len(told) == len(half)}
    return {name: (slope([x[:2] for x in told]), slope([(x[0], x[2]) for x in told])) for name, told in whole.items()}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares, per hundred."""
    return 100 * float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])


def main() -> None:
    """The run, then slopes and what is left."""
    asked = arguments(__doc__ or "")
    iterations = QUICK if asked.quick else ITERATIONS
    with tempfile.TemporaryDirectory() as folder:
        root, before = Path(folder), psutil.disk_usage("/dev/shm").used / MIB
        looks, left = watched(config_file(root, iterations=iterations, checkpoint_every=20), root / "run")
        after = psutil.disk_usage("/dev/shm").used / MIB
        steps = [json.loads(line)["timing_s/step"] for line in (root / "run/metrics.jsonl").read_text().splitlines()]
    edge = min(EDGE, (len(steps) - WARM) // 2)
    found = slopes(looks)
    shared = [(each[0], each[2]) for each in looks[len(looks) // 2 :]]
    rows = [
        {"process": name, "MiB at the end": looks[-1][1].get(name, (0.0, 0))[0], "MiB/100": rss, "files/100": fds}
        for name, (rss, fds) in sorted(found.items(), key=lambda item: -item[1][0])
    ]
    figures = {
        "iterations": float(len(steps)),
        "rss_mib_per_100": max(rss for rss, _ in found.values()),
        "rss_mib_per_100_without_ray": max(rss for name, (rss, _) in found.items() if "gcs" not in name),
        "files_per_100": max(fds for _, fds in found.values()),
        "shm_mib_per_100": slope(shared),
        "shm_mib_left": after - before,
        "processes_left": float(len(left)),
        "throughput_last_over_first": sum(steps[WARM : WARM + edge]) / sum(steps[-edge:]),
    }
    publish("steady", figures, rows, asked.json)


if __name__ == "__main__":
    main()
