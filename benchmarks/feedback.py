"""How many people can judge at once: concurrent clients against a real server, on SQLite and PostgreSQL.

Each client is an annotator with a browser's session: it fetches a task and posts a verdict, over and over. Afterwards the
database is counted: every judgement that was answered with success must be there, once.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import httpx
from contract import arguments, publish
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from rlhf_dist.feedback.database import Judgement, Task, open_database, sqlite_url
from rlhf_dist.feedback.orders import as_text, order_of
from rlhf_dist.feedback.people import invite
from rlhf_dist.feedback.serve import open_feedback
from rlhf_dist.feedback.task_files import TaskRow, load_tasks, write_tasks

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server from Debian's package, on loopback, with its own data; yields a URL. It refuses to run as root."""
    assert POSTGRES is not None
    data, port = folder / "postgres", free_port()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    data.mkdir()

    if user:
        shutil.chown(data, "postgres", "postgres")
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*user, POSTGRES / "initdb", "-D", data, "-A", "trust", "-U", "rlhf"], **quiet)
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"
    subprocess.run([*user, POSTGRES / "pg_ctl", "-D", data, "-w", "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg://rlhf@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*user, POSTGRES / "pg_ctl", "-D", data, "-m", "fast", "stop"], **quiet)


@contextmanager
def server(tasks: Path, url: str) -> Iterator[str]:
    """`rlhf-dist feedback serve` in a process of its own; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "rlhf_dist.cli", "feedback", "serve", str(tasks), "--database", url]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def page(tasks: Path, *options: object) -> Iterator[dict[str, str]]:
    """The same as a user starts it; yields the link of everybody who is new."""
    port = free_port()
    words = map(str, ["feedback", "serve", tasks, *options, "--port", port])
    links: dict[str, str] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "rlhf_dist.cli", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"(\w+): (http\S+)$", line):
                links[found[1]] = found[2]
            if line.startswith("serving on"):
                break
        try:
            wait_for(port)
            yield links
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    """Until somebody listens."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


async def client(base: str, token: str, judgements: int, seconds: list[float]) -> int:
    """Judge until all are given; returns how many were answered with success.

    Its parser is C's, so that fifty of these take little from the server on the same cores.
    """
    taken = 0
    cookies = aiohttp.CookieJar(unsafe=True)  # of an address without a name
    async with aiohttp.ClientSession(base, cookie_jar=cookies, raise_for_status=True) as browser:
        async with browser.get(f"/join/{token}") as answer:
            page = await answer.text()
        csrf = re.findall(r'name="csrf" value="([^"]*)"', page)[0]
        while taken < judgements and (task := re.search(r'name="task" value="(\d+)"', page)):
            form = {"csrf": csrf, "task": task[1], "verdict": "a", "comment": ""}
            began = time.perf_counter()
            async with browser.post("/judge", data=form) as answer:
                page = await answer.text()
            seconds.append(time.perf_counter() - began)
            taken += 1
    return taken


async def storm(base: str, tokens: list[str], each: int) -> tuple[int, list[float], float]:
    seconds: list[float] = []
    began = time.perf_counter()
    taken = await asyncio.gather(*(client(base, token, each, seconds) for token in tokens))
    return sum(taken), seconds, time.perf_counter() - began


def measure(folder: Path, url: str, *, clients: int, judgements: int) -> dict[str, float]:
    each = judgements // clients
    tasks = folder / "tasks.jsonl"
    write_tasks(tasks, [TaskRow("comparison", f"p{n}", f"x{n}", f"y{n}") for n in range(judgements // 2 + clients)])
    names = [f"annotator-{number}" for number in range(clients)]
    opened = open_feedback(tasks, url, overlap=2, annotators=names)
    opened.engine.dispose()
    with server(tasks, url) as base:
        taken, seconds, whole = asyncio.run(storm(base, [opened.invitations[name] for name in names], each))
    engine = open_database(url)
    with Session(engine) as session:
        stored = session.execute(select(func.count()).select_from(Judgement)).scalar_one()
        each_once = select(Judgement.task_id, Judgement.annotator_id).distinct().subquery()
        distinct = session.execute(select(func.count()).select_from(each_once)).scalar_one()
        counted = session.execute(select(func.sum(Task.done))).scalar_one()
    engine.dispose()
    return {
        "answered": float(taken),
        "lost": float(taken - stored),
        "doubled": float(stored - distinct),
        "miscounted": float(counted - stored),
        "p50_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * sorted(seconds)[int(0.99 * len(seconds))],
        "judgements_per_second": taken / whole,
    }


def filled(url: str, judgements: int) -> None:
    """A store that so many judgements by 50 people were given to, two of each task."""
    rng, people = Random(0), 50
    engine = open_database(url)
    tasks = [
        TaskRow("comparison", f"p{n}", "x" * rng.randint(50, 2000), "y" * rng.randint(50, 2000), *sources)
        for n, sources in zip(range(judgements // 2), cycle([("ppo", "sft"), ("sft", "ppo")]), strict=False)
    ]
    with Session(engine) as session, session.begin():
        load_tasks(session, tasks, overlap=2)
        for number in range(people):
            invite(session, f"annotator-{number}")
        session.flush()
        session.execute(
            insert(Judgement),
            [
                {
                    "task_id": task,
                    "annotator_id": who,
                    "verdict": rng.choice(["a", "a", "b", "tie", "a_much"]),
                    "seconds": 20.0,
                    "active": rng.uniform(2, 60),
                    "order_shown": as_text(order_of(task, who, 2)),
                }
                for task in range(1, judgements // 2 + 1)
                for who in rng.sample(range(1, people + 1), 2)
            ],
        )
        session.execute(update(Task).values(done=2))
    engine.dispose()


def supervising(folder: Path, url: str, judgements: int) -> dict[str, float]:
    """Seconds of the supervisor's page: asked first of a server, and each time after one more judgement."""
    write_tasks(folder / "more.jsonl", [TaskRow("comparison", f"more {n}", "x", "y", "ppo", "sft") for n in range(20)])
    filled(url, judgements)
    opened = open_feedback(folder / "more.jsonl", url, overlap=None, annotators=["one"])
    opened.engine.dispose()
    seconds = []
    with (
        server(folder / "more.jsonl", url) as base,
        httpx.Client(base_url=base, timeout=60, follow_redirects=True) as boss,
    ):
        time.sleep(3)  # a server that has been there for a moment
        asyncio.run(storm(base, [opened.invitations["one"]], 1))
        began = time.perf_counter()
        boss.get(f"/join/{opened.invitations['supervisor']}").raise_for_status()
        first = time.perf_counter() - began
        for _ in range(9):
            asyncio.run(storm(base, [opened.invitations["one"]], 1))
            began = time.perf_counter()
            boss.get("/supervise").raise_for_status()
            seconds.append(time.perf_counter() - began)
    return {"supervise_first_s": first, "supervise_s": statistics.median(seconds)}


def main() -> None:
    options = arguments(__doc__)
    clients, judgements = (10, 400) if options.quick else (50, 10_000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)  # PostgreSQL runs as another user, and its data lie within
        (root / "sqlite").mkdir()
        url = sqlite_url(root / "sqlite" / "feedback.db")
        rows.append({"database": "sqlite", **measure(root / "sqlite", url, clients=clients, judgements=judgements)})
        if POSTGRES is not None:
            (root / "postgres").mkdir()
            with postgres(root / "postgres") as url:
                rows.append(
                    {"database": "postgres", **measure(root / "postgres", url, clients=clients, judgements=judgements)}
                )
        size = 10_000 if options.quick else 100_000
        (root / "many").mkdir()
        seen = supervising(root / "many", sqlite_url(root / "many" / "feedback.db"), size)
    keys = ("answered", "lost", "doubled", "miscounted", "p50_ms", "p99_ms", "judgements_per_second")
    figures = {f"{row['database']}_{key}": row[key] for row in rows for key in keys}
    publish("feedback", {**figures, **seen}, rows, options.json)


if __name__ == "__main__":
    main()
