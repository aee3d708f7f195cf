"""What a transaction promises: of what lasts and of what may be lost with the power, on SQLite and on PostgreSQL."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from rlhf_dist.errors import StorageError
from rlhf_dist.feedback import assignment, database, judging
from rlhf_dist.feedback.database import Judgement, Shown, Task, open_database, sqlite_url, transaction
from rlhf_dist.feedback.judging import Form
from rlhf_dist.feedback.people import invite
from rlhf_dist.feedback.supervision import overview
from rlhf_dist.feedback.task_files import TaskRow, load_tasks

TASKS = [TaskRow("comparison", f"p{n}", f"x{n}", f"y{n}", "ppo", "sft") for n in range(6)]
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("lasting", "level"), [(True, 2), (False, 1)])
def test_a_judgement_reaches_the_disk_and_what_is_shown_need_not(tmp_path: Path, lasting: bool, level: int) -> None:
    engine = open_database(sqlite_url(tmp_path / "f.db"))
    for kind in (not lasting, lasting):  # on the same connection
        with transaction(engine, lasting=kind) as session:
            found = session.execute(sql("PRAGMA synchronous")).scalar_one()
    assert found == level, "2: FULL, 1: NORMAL"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("feedback")
    if benchmark.POSTGRES is None:
        pytest.skip("needs Debian's postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)  # it runs as another user
    with benchmark.postgres(folder) as url:
        yield url


@pytest.mark.soak
def test_postgresql_takes_what_sqlite_takes_and_outlives_lost_connections(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_database(server)
    with transaction(engine) as session:
        assert load_tasks(session, TASKS, overlap=2).new == len(TASKS)
        for name in ("ann", "bob"):
            invite(session, name)
    for who in (1, 2):
        for _ in TASKS:
            with transaction(engine, lasting=False) as session:
                assert session.execute(sql("SHOW synchronous_commit")).scalar_one() == "off"
                there = assignment.what_is_there(session)
                task, _ = assignment.next_task(session, who, there)
            assert task is not None
            with transaction(engine) as session:
                assert session.execute(sql("SHOW synchronous_commit")).scalar_one() == "on"
                judging.record(session, task, who, Form({"verdict": "a"}, {}), ())
    with transaction(engine) as session:
        assert judging.undo(session, 2, 12) is not None
        assert session.scalar(select(func.count()).select_from(Shown)) == 1
    with transaction(engine, reads=True) as session:
        assert overview(session).judgements == 11
        assert session.scalar(select(func.sum(Task.done))) == 11

    _lose(engine)
    with pytest.raises(StorageError, match="terminating connection|closed"), transaction(engine) as session:
        session.scalar(select(func.count()).select_from(Judgement))
    with transaction(engine) as session:
        assert session.scalar(select(func.count()).select_from(Judgement)) == 12
    _lose(engine)
    monkeypatch.setattr(database, "IDLE_S", 0.0)  # it lay idle for long
    with transaction(engine) as session:
        assert session.scalar(select(func.count()).select_from(Judgement)) == 12


def _lose(engine: database.Engine) -> None:
    """End the connections that the pool holds, as a restart of the server does."""
    other = open_database(str(engine.url.render_as_string(hide_password=False)))
    with Session(other) as session:
        ended = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'rlhf'"
        )
        assert session.execute(sql(ended)).all()
    other.dispose()
