"""Serving the feedback page: where its tasks and its database are, who is invited, and the web server."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select

from rlhf_dist.errors import DataError, EnvironmentProblem
from rlhf_dist.feedback.database import Annotator, open_database, sqlite_url, transaction
from rlhf_dist.feedback.people import invite
from rlhf_dist.feedback.task_files import load_tasks, read_tasks
from rlhf_dist.secrets import masked

TASKS = Path("feedback") / "tasks.jsonl"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Opened:
    """A database that is ready to serve."""

    engine: Engine
    place: str
    """The database's URL, as it may be shown."""
    new_tasks: int
    invitations: dict[str, str]
    """Name to token, of those invited just now."""


def task_file(run_or_file: Path) -> Path:
    """The task file of a run folder, or the file itself.

    Raises:
        DataError: there is none.
    """
    found = run_or_file / TASKS if run_or_file.is_dir() else run_or_file
    if not found.is_file():
        raise DataError(f"{found}: no such file; expected tasks, as `rlhf-dist feedback sample` writes them")
    return found


def database_url(run_or_file: Path, url: str | None) -> str:
    """The database that was named, or the SQLite file beside the tasks."""
    return url or sqlite_url(task_file(run_or_file).with_suffix(".db"))


def open_feedback(run_or_file: Path, url: str | None, *, overlap: int, annotators: list[str]) -> Opened:
    """Open the database, load tasks that it lacks, and invite who is new; the first time, a supervisor too.

    Args:
        run_or_file: run folder, or a task file.
        url: of the database; None: SQLite beside the tasks.
        overlap: judgements wanted of each new task.
        annotators: names; who is known already keeps their invitation.

    Raises:
        UserError: no tasks, a malformed task, or no database.
    """
    file = task_file(run_or_file)
    rows = read_tasks(str(file))
    found = database_url(run_or_file, url)
    engine = open_database(found)
    with transaction(engine) as session:
        new = load_tasks(session, rows, overlap=overlap)
        known = set(session.scalars(select(Annotator.name)))
        wanted = [(name, False) for name in annotators] + ([("supervisor", True)] if not known else [])
        tokens = {name: invite(session, name, supervisor=rules) for name, rules in wanted if name not in known}
    return Opened(engine, masked(found), new, tokens)


def name_of(host: str) -> str:
    """A host as URLs have it: an address with colons in brackets."""
    return f"[{host}]" if ":" in host else host


def serve(engine: Engine, *, host: str, port: int, open_hosts: bool) -> None:
    """Serve until interrupted.

    Args:
        engine: of the database.
        host: address to listen on.
        port: port to listen on.
        open_hosts: answer under any name, e.g. behind a proxy; else only under the host's own and loopback's.

    Raises:
        EnvironmentProblem: the port is taken.
    """
    import uvicorn

    from rlhf_dist.feedback.app import make_app

    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise EnvironmentProblem(
            f"{name_of(host)}:{port} cannot be listened on ({error.strerror}); choose another --port or --host"
        ) from error
    hosts = None if open_hosts else [name_of(host), *LOOPBACK]
    uvicorn.run(make_app(engine, hosts=hosts), host=host, port=port, log_level="warning", access_log=False)
