"""What a command says at its end, from what the run folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from rlhf_dist.files import read_json_lines
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.names import SAMPLES, SUMMARY


def tell_stage(output: Path) -> None:
    """What a supervised stage reached on held-out data, and where its files are."""
    console = Console()
    summary = json.loads((output.parent / SUMMARY).read_text())
    shown = ("eval_loss", "eval_perplexity", "accuracy", "ece", "score_error")
    told = [f"{key} {summary[key]:.3f}" for key in shown if summary.get(key) is not None]
    console.say(f"Held out: {', '.join(told)}")
    console.say(f"Report: [bold]{output.parent / 'report.html'}[/]   model: {output}")


def tell_rl(console: Console, path: Path) -> None:
    """Some answers before and after PPO, what was reached, and where the files are."""
    summary = json.loads((path / SUMMARY).read_text())
    samples = read_json_lines(path / SAMPLES)
    if samples:
        table = Table("prompt", "before", "after", title="Held-out prompts, before and after PPO", show_lines=True)
        for sample in samples[:3]:
            table.add_row(*(sample[key].strip() for key in ("prompt", "before", "after")))
        console.rich.print(table, markup=False)
    if summary["gold_win_rate"] is not None:
        console.say(
            f"Gold judge prefers the trained policy on [bold]{summary['gold_win_rate']:.1%}[/] of held-out prompts"
        )
    console.say(f"Reward {summary['reward_start']:.3f} -> {summary['reward_end']:.3f}, KL {summary['kl_end']:.2f} nats")
    console.say(f"Report: [bold]{path / 'report.html'}[/]   policy: {path / 'policy'}")


def show_results(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One line per measure, one column per policy: measures are many and policies few."""
    table = Table(head[0], *(row[0] for row in rows))
    for number, name in enumerate(head[1:], start=1):
        table.add_row(name, *(row[number] for row in rows))
    console.rich.print(table, markup=False)
