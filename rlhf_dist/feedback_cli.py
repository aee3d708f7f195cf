"""`rlhf-dist feedback ...`: sample answers, serve the page, invite people, take judgements out and in."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rlhf_dist.files import check_writable

HINT = "Expected a folder on a disk with room; name another file"

app = typer.Typer(help="Collect people's judgements, and exchange them with other tools.", no_args_is_help=True)

RunOrFile = Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="run folder, or a task file")]
Database = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL, e.g. postgresql+psycopg://...; default: SQLite beside the tasks")
]


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of an RL run, a pipeline or the demo")],
    against: Annotated[
        str, typer.Option(help="sft, self, before (the policy of the round before), or a model folder")
    ] = "sft",
    kind: Annotated[str, typer.Option(help="comparison, score or comment")] = "comparison",
    prompts: Annotated[int, typer.Option(min=1, help="how many prompts to answer")] = 100,
    seed: Annotated[int, typer.Option(help="of the choice of prompts and of the samples")] = 0,
    gold: Annotated[
        Path | None,
        typer.Option(
            help="file with prompt, chosen and rejected, about which nobody careful errs: mixed in, for everybody"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="task file; default: RUN/feedback/tasks.jsonl")] = None,
) -> None:
    """Let the run's policy, and what it is compared with, answer prompts; writes tasks for people."""
    from rlhf_dist.feedback.serve import TASKS
    from rlhf_dist.feedback.task_files import KINDS, read_gold, spread, write_tasks
    from rlhf_dist.run_folder.lock import locked
    from rlhf_dist.stages.feedback_sample import Wanted
    from rlhf_dist.stages.feedback_sample import sample as make

    if kind not in KINDS:
        raise typer.BadParameter(f"{kind!r}; expected one of {', '.join(KINDS)}", param_hint="--kind")
    known = read_gold(str(gold), seed=seed) if gold else []
    target = out or run / TASKS
    check_writable(target.parent, HINT)
    with locked(run) if out is None else nullcontext():
        sampled = make(Wanted(run, against, kind, prompts, seed))
        rows = spread(known, sampled.rows)
        write_tasks(target, rows)
    if sampled.left_out:
        print(sampled.told())
    print(f"{len(rows)} tasks in {target}; show them to people with: rlhf-dist feedback serve {target if out else run}")


@app.command()
def serve(  # noqa: PLR0913 - each is an option of the command
    run_or_file: RunOrFile,
    annotator: Annotated[list[str] | None, typer.Option(help="somebody to invite; repeat for several")] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=1, help="judgements wanted of each task, by different annotators; default: as it was, 1 at first"
        ),
    ] = None,
    guide: Annotated[
        Path | None,
        typer.Option(help="YAML with question, guidelines and criteria: what annotators are told and asked"),
    ] = None,
    database: Database = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="port to listen on")] = 8000,
    base_url: Annotated[
        str | None, typer.Option(help="how people reach the page, for the links; behind a proxy, with its path")
    ] = None,
) -> None:
    """Serve the page on which people judge; prints an invitation link for everybody who is new."""
    from rlhf_dist.feedback import serve as page
    from rlhf_dist.feedback.guide import read_guide

    page.check_address(host, base_url)
    told = read_guide(guide) if guide else None
    opened = page.open_feedback(run_or_file, database, overlap=overlap, annotators=annotator or [], guide=told)
    base = (base_url or f"http://{page.name_of(host)}:{port}").rstrip("/")
    print(f"{opened.loaded.new} new tasks; database {opened.place}")
    for note in opened.notes:
        print(note)
    for name, token in opened.invitations.items():
        print(f"{name}: {base}/join/{token}")
    if not opened.invitations:
        print("nobody is new; `rlhf-dist feedback invite` makes a new link for somebody", flush=True)
    print(f"serving on {base}; Ctrl+C stops it, and loses nothing", flush=True)
    page.serve(opened.engine, host=host, port=port, base_url=base_url)


@app.command()
def invite(
    run_or_file: RunOrFile,
    name: Annotated[str, typer.Argument(help="whom to invite; who is known gets a new link, and the old one ends")],
    supervisor: Annotated[
        bool, typer.Option("--supervisor", help="may see agreement and pace, invite and export")
    ] = False,
    database: Database = None,
    base_url: Annotated[str, typer.Option(help="how people reach the page")] = "http://127.0.0.1:8000",
) -> None:
    """Make an invitation link. It is printed once and kept nowhere."""
    from rlhf_dist.feedback import people
    from rlhf_dist.feedback.database import open_database, transaction
    from rlhf_dist.feedback.serve import database_url

    with transaction(open_database(database_url(run_or_file, database))) as session:
        token = people.invite(session, name, supervisor=supervisor)
    print(f"{name}: {base_url.rstrip('/')}/join/{token}")


@app.command()
def export(
    run_or_file: RunOrFile,
    out: Annotated[Path, typer.Argument(help="file to write: .jsonl, .parquet or .json")],
    form: Annotated[
        str,
        typer.Option(
            help="raw: everything; trl: prompt, chosen, rejected; argilla, label-studio: for these tools (.json)"
        ),
    ] = "raw",
    database: Database = None,
) -> None:
    """Write all judgements that stand: by whom and when, with gold questions and skips, as `rlhf-dist reward` reads them."""
    from rlhf_dist.feedback.exchange import export_judgements

    check_writable(out.parent, HINT)
    print(f"{export_judgements(run_or_file, out, database, form=form)} rows in {out}")


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="another tool's export, as JSON")],
    out: Annotated[Path, typer.Argument(help="file to write: .jsonl or .parquet, for `rlhf-dist reward`")],
    tool: Annotated[str, typer.Option("--from", help="argilla or label-studio")] = "argilla",
) -> None:
    """Turn another tool's export into feedback that `rlhf-dist reward` reads."""
    from rlhf_dist.feedback.exchange import imported, write_rows

    check_writable(out.parent, HINT)
    rows = imported(file, tool)
    write_rows(out, rows)
    print(f"{len(rows)} judgements in {out}")


@app.command()
def report(
    run_or_file: RunOrFile,
    weigh: Annotated[
        str,
        typer.Option(
            help="all: annotators count alike in win rates; trusted: without the suspected; weighed: by reliability"
        ),
    ] = "all",
    database: Database = None,
) -> None:
    """Print progress, annotators' agreement and reliability, and win rates with 95% intervals."""
    from rich.console import Console

    from rlhf_dist.feedback.database import open_database, transaction
    from rlhf_dist.feedback.serve import database_url
    from rlhf_dist.feedback.supervision import WEIGHINGS, overview
    from rlhf_dist.feedback.supervision_view import show_overview

    chosen = next((each for each in WEIGHINGS if each == weigh), None)
    if chosen is None:
        raise typer.BadParameter(f"{weigh!r}; expected one of {', '.join(WEIGHINGS)}", param_hint="--weigh")
    with transaction(open_database(database_url(run_or_file, database)), reads=True) as session:
        seen = overview(session, chosen)
    show_overview(Console(), seen)


def again(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder of a pipeline or the demo whose answers people judged")
    ],
    prompts: Annotated[int, typer.Option(min=1, help="how many prompts to answer for the next round")] = 100,
    database: Database = None,
) -> None:
    """Learn from what people said of a run's answers: a new reward model and policy, and tasks for the next round."""
    from rlhf_dist.config import PipelineConfig, load
    from rlhf_dist.ending import ending_in_words
    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.folder import claimed

    config = load(PipelineConfig, run / "pipeline.yaml")
    with Console() as console, claimed(str(run), explicit=True, again=True), ending_in_words(run):
        from rlhf_dist.stages.again import again as once_more

        once_more(config, run, console, prompts=prompts, database=database)
