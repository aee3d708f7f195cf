"""The command line: thin, and quick to answer, since each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_dist.config import DemoConfig, PPOConfig, dump, load
from rlhf_dist.errors import RunError, UserError

if TYPE_CHECKING:
    from rlhf_dist.stages.ppo import Prepared
    from rlhf_dist.telemetry.console import Console

app = typer.Typer(
    help="Distributed reinforcement learning from human feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Option("--set", help="override a setting: key.sub=value", metavar="K=V")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="folder that the run leaves behind")]
Seed = Annotated[int | None, typer.Option("--seed", help="every random choice derives from it")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print config, placement and memory; start nothing")]


@app.callback()
def _root() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@app.command()
def demo(overrides: Overrides = None, run_dir: RunDir = None, seed: Seed = None) -> None:
    """Train a small Llama from nothing on the embedded help desk: SFT, reward model, PPO."""
    config = load(DemoConfig, shipped_config("demo.yaml"), _with_seed(overrides, seed))
    from rlhf_dist.stages.demo import run
    from rlhf_dist.telemetry.console import Console
    from rlhf_dist.telemetry.run_folder import choose

    console = Console()
    folder = run(config, choose(str(run_dir or config.run_dir), explicit=run_dir is not None), console)
    _tell(console, folder.path)


@app.command()
def ppo(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    dry_run: DryRun = False,
) -> None:
    """Train a policy with PPO against a reward model, on your own models and prompts."""
    config = load(PPOConfig, config_file, _with_seed(overrides, seed))
    from rlhf_dist.stages import ppo as stage
    from rlhf_dist.telemetry.console import Console
    from rlhf_dist.telemetry.run_folder import RunFolder, choose

    console = Console()
    prepared = stage.prepare(config)
    if dry_run:
        _show_plan(console, config, prepared)
        return
    path = choose(str(run_dir or config.run_dir), explicit=run_dir is not None)
    folder = RunFolder(path, config, console=console)
    with console.progress("PPO", config.ppo.iterations):
        stage.run(config, folder)
    _tell(console, path)


@app.command()
def doctor() -> None:
    """Say what is installed, what is found, what will be used, what is wrong and how to mend it."""
    from rich.console import Console as RichConsole

    from rlhf_dist.doctor import diagnose, exit_code, render

    findings = diagnose()
    RichConsole().print(render(findings))
    raise typer.Exit(exit_code(findings))


def shipped_config(name: str) -> Path:
    """A config of `configs/`: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    inside = package / "configs" / name
    return inside if inside.exists() else package.parent / "configs" / name


def _with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    return [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]


def _show_plan(console: Console, config: PPOConfig, prepared: Prepared) -> None:
    from rich.table import Table

    console.rich.print(dump(config), markup=False, highlight=False)
    table = Table("actor", "count", "CPUs each", "GPUs each", "memory each, estimated", title="Placement")
    for plan in prepared.plans:
        parts = ", ".join(f"{name} {_size(value)}" for name, value in plan.memory.items())
        total = _size(sum(plan.memory.values()))
        table.add_row(plan.role, str(plan.count), str(plan.cpus), f"{plan.gpus:g}", f"{total} ({parts})")
    console.rich.print(table)
    console.say(
        f"{len(prepared.prompts)} prompts; policy of {prepared.sizes['policy'].parameters / 1e6:.1f} M parameters"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _tell(console: Console, path: Path) -> None:
    import json

    from rich.table import Table

    summary = json.loads((path / "summary.json").read_text())
    samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
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


def main() -> None:
    """Entry point: user errors are one message and exit code 2; a failed run is code 1 with what it died of."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"the run failed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
