"""Whether a run that is killed and resumed is the run that was never killed, to the bit.

The driver of a tiny run gets SIGKILL at random moments and the run goes on by `--resume`; its metrics and its samples are
compared with those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from contract import arguments, publish
from tiny_run import config_file, started

ITERATIONS, MOMENTS, QUICK = 24, 10, 1
CLOCK = ("timing_s/", "perf/", "fleet/restarts")


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock, and on who was lost."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(CLOCK)} for line in lines]


def samples(run_dir: Path) -> list[pa.Table]:
    """Kept samples, by iteration."""
    files = sorted((run_dir / "experience").glob("*/batch.arrow"), key=lambda file: int(file.parent.name.split("=")[1]))
    return [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]


def undisturbed(file: Path, run_dir: Path) -> None:
    """A whole run."""
    assert started(file, run_dir).wait() == 0


def killed(file: Path, run_dir: Path, moments: int) -> list[int]:
    """Kill the driver so often, each time a random while after it got on; returns the iterations done then."""
    draws = np.random.default_rng(0)
    found: list[int] = []
    metrics = run_dir / "metrics.jsonl"
    for moment in range(moments + 1):
        child = started(file, run_dir, "--resume")
        target = (moment + 1) * ITERATIONS // (moments + 2)
        while moment < moments and (not metrics.exists() or metrics.read_bytes().count(b"\n") < target):
            assert child.poll() is None, run_dir.with_suffix(".txt").read_text()[-2000:]
            time.sleep(0.01)
        if moment == moments:
            assert child.wait() == 0, run_dir.with_suffix(".txt").read_text()[-2000:]
            return found
        time.sleep(draws.uniform(0.0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        found.append(metrics.read_bytes().count(b"\n"))
    raise AssertionError("the last round returns")


def main() -> None:
    """Both runs, then what differs."""
    asked = arguments(__doc__ or "")
    moments = QUICK if asked.quick else MOMENTS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file = config_file(root, iterations=ITERATIONS, checkpoint_every=2, experience={"keep": True})
        undisturbed(file, root / "whole")
        at = killed(file, root / "killed", moments)
        pairs = [*zip(rows(root / "whole"), rows(root / "killed"), strict=True)]
        kept = [*zip(samples(root / "whole"), samples(root / "killed"), strict=True)]
        equal = [one == other for one, other in pairs]
        differ = Counter(key for one, other in pairs for key in one.keys() | other if one.get(key) != other.get(key))
        same = [one.equals(other) for one, other in kept]
    figures = {
        "kills": float(len(at)),
        "rows_equal": float(sum(equal)),
        "rows_different": float(len(equal) - sum(equal)),
        "samples_equal": float(sum(same)),
        "samples_different": float(len(same) - sum(same)),
    }
    told: list[dict[str, Any]] = [{"kill": number + 1, "after iteration": done} for number, done in enumerate(at)]
    told += [{"kill": f"{key} differs", "after iteration": count} for key, count in sorted(differ.items())]
    publish("resume_exact", figures, told, asked.json)


if __name__ == "__main__":
    main()
