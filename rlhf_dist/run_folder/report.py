"""`report.html`: the run at a glance, in one file that needs nothing else."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.rendering import plain, rendered
from rlhf_dist.files import read_json_lines, write_text
from rlhf_dist.run_folder.charts import legend, line_chart, stacked_bars
from rlhf_dist.run_folder.console import shown
from rlhf_dist.run_folder.names import CONFIG, METRICS, REPORT, SAMPLES, SUMMARY, experience_files
from rlhf_dist.run_folder.passages import Passage, read_passages

log = logging.getLogger(__name__)

TITLES = {
    "ppo": "PPO against a learned reward",
    "sft": "Supervised fine-tuning",
    "reward": "A reward model from people's judgements",
    "dpo": "A policy from people's judgements",
    "evaluation": "Policies compared",
}
STAGES = ("evaluation", "sft", "judge", "reward")
"""Folders under `stages/`, as the report of a whole run shows them."""
CHARTS = (
    (
        "Reward",
        "critic/score/mean",
        "Mean score of the sampled answers, by all rewards and rules, before algorithm.score_clip and penalties. It should rise.",
    ),
    ("Gold score", "reward/gold/mean", "Mean gold score of the sampled answers; training never sees it."),
    ("KL to the reference", "objective/kl", "How far the policy is from the reference, in nats per answer."),
    ("Entropy", "actor/entropy", "Mean entropy per token, in nats. A sudden fall means the policy has collapsed."),
    ("Answer length", "response_length/mean", "Tokens per answer."),
    ("Clipped tokens", "actor/pg_clipfrac", "Share of tokens whose probability ratio was clipped."),
    ("Explained variance", "critic/vf_explained_var", "How much of the return the critic foresees; 1 is all."),
    ("Cut answers", "response_length/clip_ratio", "Share of answers that reached the length limit."),
    (
        "Disagreement",
        "reward/reward_disagreement/mean",
        "Standard deviation over the ensemble's rewards of an answer, in the mean.",
    ),
    ("Unsafe answers", "reward/unsafe/mean", "Share of answers that broke a rule and were capped."),
    ("Loss", "train/loss", "On each batch. It should fall."),
    ("Held-out loss", "eval/loss", "After each epoch. Where it rises while the loss falls, the model learns by heart."),
    ("Accuracy", "train/comparisons/accuracy", "Share of a batch's comparisons that the model decides as people did."),
    ("Held-out accuracy", "eval/comparisons/accuracy", "The same on comparisons that it was not trained on."),
    ("Accuracy", "train/accuracy", "Share of a batch's judgements that the policy's own reward decides as people did."),
    ("Held-out accuracy", "eval/accuracy", "The same on judgements that it was not trained on."),
    ("Gradient norm", "train/grad_norm", "Before clipping."),
    ("Throughput", "perf/throughput", "Tokens per second, over the whole iteration or step."),
)
STAGE_TILES = (
    ("eval_loss", "held-out loss", "{:.3f}", "nats per token of the answer, or per judgement"),
    ("eval_perplexity", "perplexity", "{:.2f}", "of held-out answers"),
    ("accuracy", "accuracy", "{:.1%}", "of held-out judgements decided as people did"),
    ("ece", "ECE", "{:.3f}", "mean distance of predicted and observed preferences"),
    ("score_error", "score error", "{:.3f}", "mean distance to held-out scores and read comments, 0 to 1"),
    ("demonstrations", "demonstrations", "{}", "learnt"),
    ("judgements", "judgements", "{}", "learnt"),
    ("steps", "steps", "{}", "of the optimiser"),
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


def write_report(run_dir: Path, summary: dict[str, Any] | None = None) -> Path:
    """Read a run folder's files and write `report.html` beside them.

    Args:
        run_dir: the folder.
        summary: what `summary.json` will be; None: it is there.

    Raises:
        DataError: a file is missing or malformed; names file and line.
    """
    from jinja2 import Environment, PackageLoader

    summary = _read_json(run_dir / SUMMARY) if summary is None else summary
    rows, samples = (_lines_if_there(run_dir / name) for name in (METRICS, SAMPLES))
    config = run_dir / CONFIG
    page = Environment(loader=PackageLoader("rlhf_dist.run_folder", "."), autoescape=True).get_template(
        "report.html.j2"
    )
    target = run_dir / REPORT
    html = page.render(
        summary=summary,
        title=TITLES.get(summary["stage"], summary["stage"]),
        facts=_facts(summary),
        tiles=tiles(summary) if summary["stage"] == "rl" else stage_tiles(summary),
        charts=charts(rows),
        samples=_telling(samples)[:SHOWN_SAMPLES],
        plain=plain,
        rendered=rendered,
        stages=_earlier(run_dir / "stages"),
        passages=[*_notes(summary), *read_passages(run_dir)],
        run=str(run_dir),
        kept=_kept(run_dir),
        config=config.read_text() if config.exists() else "",
    )
    write_text(target, html)
    return target


@dataclass(frozen=True)
class _Earlier:
    """A stage before this one, in the same run folder."""

    name: str
    title: str
    tiles: list[Tile]
    passages: list[Passage]

    @classmethod
    def read(cls, folder: Path) -> _Earlier:
        summary = _read_json(folder / SUMMARY)
        return cls(folder.name, TITLES.get(summary["stage"], folder.name), stage_tiles(summary), read_passages(folder))


def _earlier(folder: Path) -> list[_Earlier]:
    """Stages that are done; one whose files are damaged is left out, since this report is not about it."""
    found = []
    for name in STAGES:
        try:
            found += [_Earlier.read(folder / name)] if (folder / name / SUMMARY).exists() else []
        except (DataError, LookupError, TypeError) as error:
            log.warning("the report leaves stage %s out: %s", name, error)
    return found


def _notes(summary: dict[str, Any]) -> list[Passage]:
    """What happened to the run that people should know."""
    notes = summary.get("notes")
    return [Passage("Notes", "", ("What happened",), tuple((note,) for note in notes))] if notes else []


def _facts(summary: dict[str, Any]) -> list[str]:
    """The line under the title."""
    found = [summary.get("model")]
    if "iterations" in summary:
        found += [
            f"{summary['iterations']} iterations",
            f"{summary['engine']} rollouts",
            f"{summary['schedule']} schedule",
        ]
    found += [f"seed {summary['seed']}", summary["machine"]]
    if summary.get("stopped"):
        found.append(f"stopped: {summary['stopped']}")
    return [fact for fact in found if fact]


def stage_tiles(summary: dict[str, Any]) -> list[Tile]:
    """The figures of a stage before PPO."""
    found = [
        Tile(form.format(summary[key]), name, meaning)
        for key, name, form, meaning in STAGE_TILES
        if summary.get(key) is not None
    ]
    return [*found, Tile(_duration(summary["seconds"]["total"]), "in all", "processes' start in")]


def _kept(run_dir: Path) -> list[tuple[int, str]]:
    """Iterations whose samples were kept, each with its file as the report links it."""
    return [(iteration, str(file.relative_to(run_dir))) for iteration, file in experience_files(run_dir).items()]


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The figures that a person asks for first."""
    found = []
    if summary.get("gold_win_rate") is not None:
        meaning = "of held-out prompts: the gold judge prefers the answer after PPO"
        found.append(Tile(f"{summary['gold_win_rate']:.0%}", "gold win rate", meaning))
    if summary.get("gold_score_before") is not None:
        value = _from_to(summary["gold_score_before"], summary["gold_score_after"])
        found.append(Tile(value, "gold score", "mean of the rule that training never saw"))
    reward = _from_to(summary["reward_start"], summary["reward_end"])
    return [
        *found,
        Tile(reward, "reward", "mean score by all rewards and rules, first and last iteration"),
        Tile(shown("{:.1f}", summary["kl_end"]), "KL, nats", "per answer, from the reference policy"),
        Tile(shown("{:.0f}", summary["samples_per_second"]), "samples/s", "over whole iterations, training included"),
        Tile(
            _duration(summary["seconds"]["total"]),
            "PPO in all",
            f"{summary['iterations']} iterations, engines' start in",
        ),
    ]


def _from_to(before: float | None, after: float | None) -> str:
    return f"{shown('{:.2f}', before)} → {shown('{:.2f}', after)}"


def charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """A chart for every metric that the run recorded, then the time per phase."""
    xs = [row["iteration"] + 1 for row in rows]
    drawn = []
    for title, key, meaning in CHARTS:
        points = [(row["iteration"] + 1, float(row[key])) for row in rows if _is_number(row.get(key))]
        if points:
            drawn.append(Chart(title, meaning, line_chart(title, *zip(*points, strict=True))))
    phases = {name: [float(row.get(f"timing_s/{name}") or 0.0) for row in rows] for name in PHASES}
    phases = {name: values for name, values in phases.items() if any(values)}
    if phases:
        meaning = "Seconds per iteration: generating, waiting for scores, pulling weights, updating, publishing."
        drawn.insert(
            4, Chart("Time per phase", meaning, stacked_bars("Time per phase", xs, phases), legend(list(phases)))
        )
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _lines_if_there(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.exists() else []


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
