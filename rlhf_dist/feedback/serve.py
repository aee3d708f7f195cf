"""Serving the feedback page: where its tasks and its database are, who is invited, and the web server."""

from __future__ import annotations

import gc
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from sqlalchemy import Engine, func, select

from rlhf_dist.errors import ConfigError, DataError, EnvironmentProblem, StorageError
from rlhf_dist.feedback.database import Annotator, Task, open_database, sqlite_url, transaction
from rlhf_dist.feedback.guide import Guide, keep_guide
from rlhf_dist.feedback.people import checked_name, invite
from rlhf_dist.feedback.task_files import LoadedTasks, load_tasks, read_tasks
from rlhf_dist.secrets import masked

if TYPE_CHECKING:
    from fastapi import FastAPI

TASKS = Path("feedback") / "tasks.jsonl"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


WILDCARDS = ("0.0.0.0", "::", "")
"""Addresses that mean all of the machine's own, and are none that people could open."""
BASE_URL = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:[1-9]\d{0,4})?(/[\w.~-]+)*/?", re.IGNORECASE | re.ASCII)
"""What it has is the same in a link, a cookie, and what a browser asks for: other characters are spelt differently in each."""

MOST_PORT = 2**16 - 1


@dataclass(frozen=True)
class Opened:
    """A store that is ready to serve."""

    engine: Engine
    place: str
    """The database's URL, as it may be shown."""
    loaded: LoadedTasks
    invitations: dict[str, str]
    """Name to token, of those invited just now."""
    notes: list[str]
    """What changed, and what cannot work out, in sentences."""


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


def open_feedback(
    run_or_file: Path, url: str | None, *, overlap: int | None, annotators: list[str], guide: Guide | None = None
) -> Opened:
    """Open the store, bring it up to date with its task file, and invite who is new; a supervisor too, if there is none.

    Args:
        run_or_file: run folder, or a task file.
        url: of the database; None: SQLite beside the tasks.
        overlap: judgements wanted of each task; None: as it was, 1 in a new store.
        annotators: names; who is known already keeps their invitation.
        guide: what annotators are told and asked from now on; None: as it was.

    Raises:
        UserError: no tasks, a malformed task, or no database.
    """
    file = task_file(run_or_file)
    rows = read_tasks(str(file))
    found = database_url(run_or_file, url)
    engine = open_database(found)
    with transaction(engine) as session:
        loaded = load_tasks(session, rows, overlap=overlap)
        known = {one.name: one.supervisor for one in session.scalars(select(Annotator))}
        wanted = [(checked_name(name), False) for name in annotators]
        wanted += [] if any(known.values()) else [("supervisor", True)]
        tokens = {name: invite(session, name, supervisor=rules) for name, rules in wanted if name not in known or rules}
        notes = _notes(loaded, guide is not None and keep_guide(session, guide))
        people = session.scalar(select(func.count()).select_from(Annotator)) or 0
        needed = session.scalar(select(func.max(Task.needed)).where(Task.gold.is_(None))) or 0
    if needed > people:
        notes.append(f"each task wants {needed} judgements, and {people} people are invited: none can be finished yet")
    return Opened(engine, masked(found), loaded, tokens, notes)


def _notes(loaded: LoadedTasks, guided: bool) -> list[str]:
    """What became different in a store that was there."""
    told = {
        f"{loaded.needed_changed} tasks now want another number of judgements": loaded.needed_changed,
        f"{loaded.gold_changed} tasks have another gold answer": loaded.gold_changed,
        f"{loaded.questions_changed} tasks ask other questions of their own": loaded.questions_changed,
        f"{loaded.absent} earlier tasks are not in the file, and stay": loaded.absent,
        "the guide is new; what was said before keeps its scales": guided,
    }
    return [note for note, holds in told.items() if holds]


def check_address(host: str, base_url: str | None) -> None:
    """Refuse what would print links that nobody can open.

    Raises:
        ConfigError: the host stands for all addresses, and there is no base URL; or the base URL is none.
    """
    if base_url is None:
        if host in WILDCARDS:
            raise ConfigError(
                f"--host {host} listens on every address, and is none itself; expected --base-url too, as people will open the "
                "page, for instance http://192.168.0.7:8000"
            )
        return
    found = BASE_URL.fullmatch(base_url)
    if not found or int((found[2] or ":80")[1:]) > MOST_PORT:
        raise ConfigError(
            f"--base-url is {base_url!r}; expected http://HOST[:PORT][/PATH], or https, of letters, digits and . _ ~ -"
        )


def name_of(host: str) -> str:
    """A host as URLs have it: an address with colons in brackets."""
    return f"[{host}]" if ":" in host else host


def serve(engine: Engine, *, host: str, port: int, base_url: str | None) -> None:
    """Serve until interrupted.

    Args:
        engine: of the database.
        host: address to listen on.
        port: port to listen on.
        base_url: how people reach the page, e.g. behind a proxy; with it, it answers under any name, else only under the host's
            own and loopback's.

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
    hosts = None if base_url else [name_of(host), *LOOPBACK]
    app = make_app(engine, hosts=hosts, base_url=base_url)
    Thread(target=_warm, args=(app, engine), daemon=True).start()
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _warm(app: FastAPI, engine: Engine) -> None:
    """Load what the supervisor's page counts with, and what it counts, which takes a second or two, before somebody asks.

    What is loaded stays: the collector need not look through it again and again, while everybody waits.
    """
    import_module("scipy.stats")
    with suppress(StorageError), transaction(engine, reads=True) as session:  # who asks is told of it
        app.state.seen.overview(session, "all")
    gc.freeze()
