"""`report.html`: the run at a glance, in one file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.telemetry.charts import legend, line_chart, stacked_bars

CHARTS = (
    ("Reward", "critic/score/mean", "The reward model's mean score of the sampled answers. It should rise."),
    ("KL to the reference", "objective/kl", "How far the policy has moved, in nats per answer."),
    ("Entropy", "actor/entropy", "Mean entropy per token, in nats. A sudden fall means the policy has collapsed."),
    ("Answer length", "response_length/mean", "Tokens per answer."),
    ("Clipped tokens", "actor/pg_clipfrac", "Share of tokens whose probability ratio was clipped."),
    ("Explained variance", "critic/vf_explained_var", "How much of the return the critic foresees; 1 is all."),
    ("Cut answers", "response_length/clip_ratio", "Share of answers that reached the length limit."),
    ("Throughput", "perf/throughput", "Prompt and answer tokens per second of the whole iteration."),
)
PHASES = ("gen", "score_wait", "pull_weights", "update", "update_weights")
SHOWN_SAMPLES = 12


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    value: str
    name: str
    meaning: str


@dataclass(frozen=True)
class Chart:
    """A drawn chart and what it says."""

    title: str
    meaning: str
    svg: str
    legend: str = ""


def write_report(run_dir: Path) -> Path:
    """Read a run folder's files and write `report.html` beside them.

    Raises:
        DataError: a file is missing or malformed; names file and line.
    """
    from jinja2 import Environment, PackageLoader

    summary = _read_json(run_dir / "summary.json")
    rows = read_lines(run_dir / "metrics.jsonl")
    samples = read_lines(run_dir / "samples.jsonl") if (run_dir / "samples.jsonl").exists() else []
    stages = _read_json(run_dir / "stages.json") if (run_dir / "stages.json").exists() else []
    config = run_dir / "config.yaml"
    page = Environment(loader=PackageLoader("rlhf_dist.telemetry", "."), autoescape=True).get_template("report.html.j2")
    target = run_dir / "report.html"
    aside = run_dir / ".report.html.partial"
    html = page.render(
        summary=summary,
        tiles=tiles(summary),
        charts=charts(rows),
        samples=_telling(samples)[:SHOWN_SAMPLES],
        stages=stages,
        run=str(run_dir),
        kept=_kept(run_dir),
        config=config.read_text() if config.exists() else "",
    )
    aside.write_text(html)
    aside.replace(target)
    return target


def _kept(run_dir: Path) -> list[tuple[int, str]]:
    """Iterations whose samples were kept, each with its file as the report links it."""
    files = sorted(run_dir.glob("experience/iteration=*/batch.arrow"))
    return [(int(file.parent.name.partition("=")[2]), str(file.relative_to(run_dir))) for file in files]


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The figures that a person asks for first."""
    found = []
    if summary.get("gold_win_rate") is not None:
        meaning = "of held-out prompts: the gold judge prefers the answer after PPO"
        found.append(Tile(f"{summary['gold_win_rate']:.0%}", "gold win rate", meaning))
    if summary.get("gold_score_before") is not None:
        value = f"{summary['gold_score_before']:.2f} → {summary['gold_score_after']:.2f}"
        found.append(Tile(value, "gold score", "mean of the rule that training never saw, from 0 to 1"))
    reward = f"{summary['reward_start']:.2f} → {summary['reward_end']:.2f}"
    return [
        *found,
        Tile(reward, "reward", "mean score by the reward model, first and last iteration"),
        Tile(f"{summary['kl_end']:.1f}", "KL, nats", "per answer, from the policy that PPO started with"),
        Tile(f"{summary['samples_per_second']:.0f}", "samples/s", "over whole iterations, training included"),
        Tile(
            _duration(summary["seconds"]["total"]),
            "PPO in all",
            f"{summary['iterations']} iterations, engines' start in",
        ),
    ]


def charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """A chart for every metric that the run recorded, then the time per phase."""
    xs = [row["iteration"] + 1 for row in rows]
    drawn = []
    for title, key, meaning in CHARTS:
        values = [row.get(key) for row in rows]
        if values and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            drawn.append(Chart(title, meaning, line_chart(title, xs, [float(v) for v in values if v is not None])))
    phases = {name: [float(row.get(f"timing_s/{name}", 0.0)) for row in rows] for name in PHASES}
    phases = {name: values for name, values in phases.items() if any(values)}
    if phases:
        meaning = "Seconds per iteration: generating, waiting for scores, pulling weights, updating, publishing."
        drawn.insert(
            4, Chart("Time per phase", meaning, stacked_bars("Time per phase", xs, phases), legend(list(phases)))
        )
    return drawn


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file.

    Raises:
        DataError: names file and line.
    """
    rows = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found {type(row).__name__}; expected a JSON object")
        rows.append(row)
    return rows


def _telling(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample of every few, so that the page shows gains, ties and losses in their true proportion."""
    return samples[:: max(1, len(samples) // SHOWN_SAMPLES)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _read(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected one that a run leaves behind")
    return path.read_text()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
