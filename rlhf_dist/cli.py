"""The command line: thin, and quick to answer, since each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_dist import feedback_cli, methods_cli, plan_cli
from rlhf_dist.config import (
    ChaosConfig,
    DPOConfig,
    EvaluateConfig,
    Job,
    PipelineConfig,
    RewardConfig,
    RLConfig,
    SFTConfig,
    dump,
    load,
    override,
)
from rlhf_dist.ending import ending_in_words
from rlhf_dist.errors import RunError, UserError
from rlhf_dist.files import shipped_config

if TYPE_CHECKING:
    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.stages.stage import Prepared

app = typer.Typer(
    help="Distributed reinforcement learning from human feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Option("--set", help="override a setting: key.sub=value", metavar="K=V")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="folder that the run leaves behind")]
Seed = Annotated[int | None, typer.Option("--seed", help="every random choice derives from it")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to run on: auto, or host:port")]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on from the run folder's newest checkpoint, if there is one")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print config, placement and memory; start nothing")]


app.add_typer(feedback_cli.app, name="feedback")


@app.callback()
def _root() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@app.command()
def demo(
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    address: Address = None,
    resume: Resume = False,
) -> None:
    """Train a small Llama from nothing on the embedded help desk: SFT, reward model, PPO."""
    config = load(PipelineConfig, shipped_config("demo.yaml"), _with(overrides, seed, address))
    _run_pipeline(config, run_dir, resume=resume, anew=True)


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")]
CheckOnly = Annotated[
    bool, typer.Option("--dry-run", help="read and check everything, print the config; start nothing")
]


def _supervised(name: str, kind: type[Job], does: str) -> None:
    """Add the command of a supervised stage, `rlhf_dist.stages.NAME`."""

    def command(
        config_file: ConfigFile,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        seed: Seed = None,
        address: Address = None,
        resume: Resume = False,
        dry_run: CheckOnly = False,
    ) -> None:
        config = load(kind, config_file, _with(overrides, seed, address))
        stage: Any = import_module(f"rlhf_dist.stages.{name}")
        path = _run_stage(stage, name, config, run_dir, dry_run=dry_run, resume=resume)
        if path is not None:
            from rlhf_dist.run_folder.outcome import tell_stage

            tell_stage(path / stage.OUTPUT)

    app.command(name, help=does)(command)


_supervised("sft", SFTConfig, "Fine-tune a model on demonstrations.")
_supervised("reward", RewardConfig, "Train a reward model on people's comparisons, rankings, scores and comments.")
_supervised("dpo", DPOConfig, "Train a policy on judgements without a reward model (DPO, IPO, KTO, ORPO, SimPO).")


@app.command()
def pipeline(
    config_file: ConfigFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    address: Address = None,
    resume: Resume = False,
) -> None:
    """Run fine-tuning, a reward model and PPO one after the other; stages that are finished are skipped."""
    config = load(PipelineConfig, config_file, _with(overrides, seed, address))
    _run_pipeline(config, run_dir, resume=resume, anew=False)


app.command()(feedback_cli.again)


def _run_pipeline(config: PipelineConfig, run_dir: Path | None, *, resume: bool, anew: bool) -> None:
    """Run all stages; `anew`: in a folder that holds no run yet, unless that run is resumed."""
    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.folder import claimed

    claim = claimed(str(run_dir or config.run_dir), explicit=run_dir is not None, resume=resume, again=not anew)
    with Console() as console, claim as path, ending_in_words(path):
        from rlhf_dist.stages.pipeline import run

        run(config, path, console, resume=resume)
    from rlhf_dist.run_folder.outcome import tell_rl

    tell_rl(console, path)


def _run_stage(
    stage: Any,
    name: str,
    config: Job,
    run_dir: Path | None,
    *,
    dry_run: bool,
    again: bool = False,
    resume: bool = False,
) -> Path | None:
    """Check a stage's config and data, and run it, unless that was all; returns the folder.

    Args:
        stage: a `Stage`, or a `SharingStage`.
        name: its name.
        config: its settings.
        run_dir: its folder, if the user named one.
        dry_run: check only.
        again: in a folder that may hold a run.
        resume: the same, going on from its newest checkpoint.
    """
    from rich.markup import escape

    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.folder import RunFolder, claimed

    with Console() as console:
        if dry_run:
            _show_dry_run(console, config, stage.prepare(config))
            plan_cli.show_here(console.rich, config)
            return None
        claim = claimed(str(run_dir or config.run_dir), explicit=run_dir is not None, resume=resume, again=again)
        with claim as path, ending_in_words(path):
            prepared = stage.prepare(config, resume=path) if resume else stage.prepare(config)
            console.say(escape(prepared.describe()))
            stage.run(config, prepared, RunFolder(path, config, console=console, stage=name))
    return path


def _show_dry_run(console: Console, config: Job, prepared: Prepared) -> None:
    from rich.markup import escape

    console.rich.print(dump(config), markup=False, highlight=False)
    if isinstance(config, RLConfig):
        from rlhf_dist.config.words import in_words

        console.say("\n".join(["[bold]What is estimated and minimised[/]", *map(escape, in_words(config))]))
    console.say(escape(prepared.describe()))
    console.rich.print(prepared.example(), markup=False, highlight=False, soft_wrap=True)


@app.command()
def rl(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a policy by reinforcement learning against rewards: PPO, or any method of `rlhf-dist algorithms`."""
    config = load(RLConfig, config_file, _with(overrides, seed, address))
    from rich.markup import escape

    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.folder import claimed
    from rlhf_dist.run_folder.rl_folder import RLFolder
    from rlhf_dist.stages import rl as stage
    from rlhf_dist.stages.hub import resolved
    from rlhf_dist.stages.resume import told_of_resume

    with Console() as console:
        if dry_run:
            _show_dry_run(console, config, stage.prepare(config))
            plan_cli.show_here(console.rich, config)
            return
        claim = claimed(str(run_dir or config.run_dir), explicit=run_dir is not None, resume=resume)
        with claim as path, ending_in_words(path):
            prepared = stage.prepare(config, resume=path if resume else None)
            console.say(escape(prepared.describe()))
            notes = told_of_resume(resolved(config), path, prepared.begin) if resume else []
            stage.run(config, prepared, RLFolder(path, config, console=console, notes=notes))
    from rlhf_dist.run_folder.outcome import tell_rl

    tell_rl(console, path)


app.command()(methods_cli.algorithms)
app.command("ppo", hidden=True, context_settings=methods_cli.ANY)(methods_cli.ppo)


@app.command()
def chaos(
    config_file: ConfigFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Annotated[int, typer.Option(help="of the schedule of faults")] = 0,
    faults: Annotated[int, typer.Option(min=1, help="how many")] = 20,
) -> None:
    """Put a run through kills, hangs, damaged files and a lying reward server; fail where it does not get over them."""
    config = load(ChaosConfig, config_file, overrides)
    from rich.console import Console as RichConsole

    from rlhf_dist.chaos.run import chaos as run
    from rlhf_dist.run_folder.folder import claimed

    console = RichConsole()
    with claimed(str(run_dir or config.run_dir), explicit=run_dir is not None) as path:
        report = run(config, path, seed=seed, faults=faults, tell=lambda line: console.print(line, markup=False))
    report.show(console)
    raise typer.Exit(1 if report.broken else 0)


@app.command()
def evaluate(
    config_or_run: Annotated[
        Path, typer.Argument(metavar="CONFIG_OR_RUN", help="YAML file, or the folder of an RL run")
    ],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    address: Address = None,
    dry_run: CheckOnly = False,
) -> None:
    """Compare policies: rewards, win rates with intervals, KL, diversity, fluency, safety, and measures against targets."""
    from rlhf_dist.stages import evaluate as stage

    changes = _with(overrides, seed, address)
    if config_or_run.is_dir():
        config = override(stage.config_of_run(config_or_run), changes)
    else:
        config = load(EvaluateConfig, config_or_run, changes)
    of_run = config_or_run.is_dir() and run_dir is None
    path = _run_stage(stage, "evaluation", config, run_dir, dry_run=dry_run, again=of_run)
    if path is None:
        return
    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.lock import locked
    from rlhf_dist.run_folder.names import REPORT, SUMMARY
    from rlhf_dist.run_folder.outcome import show_results
    from rlhf_dist.run_folder.passages import read_passages
    from rlhf_dist.run_folder.report import write_report

    console = Console()
    for passage in read_passages(path):
        show_results(console, passage.head, passage.rows)
    told_in_run = of_run and (config_or_run / SUMMARY).exists()
    if told_in_run:
        with locked(config_or_run):
            write_report(config_or_run)  # with the evaluation in it
    report = (config_or_run if told_in_run else path) / REPORT
    console.say(f"Report: [bold]{report}[/]   answers: {path / stage.OUTPUT}")


app.command()(plan_cli.plan)


@app.command()
def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run folder, or a run's name on the cluster")],
    once: Annotated[bool, typer.Option("--once", help="print once and end, instead of following")] = False,
    address: Annotated[str, typer.Option("--address", help="Ray cluster that the run is on")] = "auto",
) -> None:
    """Watch a run: state, iteration, metrics, rollout workers, queues. Works on any machine of the cluster."""
    from rlhf_dist.run_folder.status import follow

    follow(run, address=address, once=once)


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on printing as lines are written")] = False,
    actor: Annotated[str | None, typer.Option(help="only this actor's lines, e.g. rollout-0")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the lines as they are written")] = False,
) -> None:
    """Print the log lines of all actors of a run, in the order of time."""
    from rlhf_dist.run_folder.log_view import show_logs

    show_logs(run, follow=follow, actor=actor, as_json=as_json)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder of a run with experience.keep")],
    iteration: Annotated[int | None, typer.Option(help="counted from 0; default: the last")] = None,
    worst: Annotated[int | None, typer.Option(help="the samples with the lowest scores")] = None,
    best: Annotated[int | None, typer.Option(help="the samples with the highest scores")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="every token with its log-probs")] = False,
) -> None:
    """Print samples that a run trained on: text, score, KL, and each token's log-probs."""
    from rlhf_dist.run_folder.samples import show_samples

    show_samples(run, iteration=iteration, worst=worst, best=best, tokens=tokens)


@app.command()
def doctor() -> None:
    """Say what is installed, what is found, what will be used, what is wrong and how to mend it."""
    from rich.console import Console as RichConsole

    from rlhf_dist.doctor import diagnose, exit_code, render

    findings = diagnose()
    RichConsole().print(render(findings))
    raise typer.Exit(exit_code(findings))


def _with(overrides: list[str] | None, seed: int | None, address: str | None) -> list[str]:
    """All overrides, those with an option of their own included."""
    own = {"seed": seed, "cluster.address": address}
    return [*(overrides or []), *(f"{key}={value}" for key, value in own.items() if value is not None)]


def main() -> None:
    """Entry point: errors are one message, and their kind's exit code (`errors`)."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except RunError as error:
        print(f"the run failed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
