"""The tables of human feedback, on SQLite or any database that SQLAlchemy reaches.

A judgement is one committed transaction. Nothing is ever deleted: undoing a judgement marks it withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, ForeignKey, Index, create_engine, event, text
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import QueuePool

from rlhf_dist.errors import EnvironmentProblem, StorageError

OPEN = "gold IS NULL AND done < needed"
BUSY_S = 30
"""How long a writer waits for another on SQLite."""


def now() -> datetime:
    """The time, in UTC and without a zone, as all columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Table(DeclarativeBase):
    """Base of all tables."""


class Annotator(Table):
    """Somebody who judges, or supervises."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    supervisor: Mapped[bool]
    token_hash: Mapped[str] = mapped_column(unique=True)
    """Of the invitation; the token itself is shown once and kept nowhere."""
    created: Mapped[datetime] = mapped_column(default=now)


class Visit(Table):
    """A browser that came by invitation."""

    __tablename__ = "visits"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    """Of the cookie's value."""
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    csrf: Mapped[str]
    """What every form of this browser must bring."""
    created: Mapped[datetime] = mapped_column(default=now)
    annotator: Mapped[Annotator] = relationship(lazy="joined")


class Task(Table):
    """A question to people: which of two answers is better, how good one is, or what they say of it."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    """Of what is asked, so that the same file can be loaded twice."""
    kind: Mapped[str]
    """`comparison`, `score` or `comment`."""
    prompt: Mapped[str]
    answer_a: Mapped[str]
    answer_b: Mapped[str | None]
    source_a: Mapped[str]
    """Who answered; never shown to annotators."""
    source_b: Mapped[str]
    gold: Mapped[str | None]
    """What is known to be right, for quality: `a`, `b`, or a score."""
    needed: Mapped[int]
    """Judgements wanted, each by another annotator; a gold question is for everybody."""
    done: Mapped[int] = mapped_column(default=0)
    """Judgements that stand."""
    source: Mapped[PromptSource | None] = relationship(lazy="joined")

    __table_args__ = (
        Index("open_tasks", "id", sqlite_where=text(OPEN), postgresql_where=text(OPEN)),
        Index("gold_tasks", "id", sqlite_where=text("gold IS NOT NULL"), postgresql_where=text("gold IS NOT NULL")),
    )


class PromptSource(Table):
    """What a task's prompt was made from, where its text alone is not what the policy was given."""

    __tablename__ = "prompt_sources"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    columns: Mapped[str]
    """As JSON, columns of feedback: see `records.Prompt.source`."""


class Judgement(Table):
    """What one annotator said to one task."""

    __tablename__ = "judgements"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    verdict: Mapped[str]
    """`assignment.VERDICTS` of a comparison, by the task's own sides; a number of a score; `said` of a comment; or `skip`."""
    comment: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float]
    """From when the task was shown first."""
    created: Mapped[datetime] = mapped_column(default=now)
    withdrawn: Mapped[datetime | None] = mapped_column(default=None)
    task: Mapped[Task] = relationship(lazy="joined")
    annotator: Mapped[Annotator] = relationship(lazy="joined")

    __table_args__ = (
        # Two clicks, two tabs, the back button: at most one judgement of a task by an annotator stands.
        Index(
            "one_that_stands",
            "task_id",
            "annotator_id",
            unique=True,
            sqlite_where=text("withdrawn IS NULL"),
            postgresql_where=text("withdrawn IS NULL"),
        ),
        Index("by_annotator", "annotator_id", "withdrawn"),
    )


class Shown(Table):
    """A task that an annotator has before their eyes, which is meanwhile not given to others beyond what it needs."""

    __tablename__ = "shown"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), primary_key=True)
    since: Mapped[datetime] = mapped_column(default=now)


def open_database(url: str) -> Engine:
    """Connect, and make the tables that are missing.

    Args:
        url: SQLAlchemy's, e.g. `sqlite:///feedback.db` or `postgresql+psycopg://user@host/name`.

    Raises:
        EnvironmentProblem: the URL is none, its driver is missing, or nothing answers there.
    """
    try:
        engine = create_engine(url, pool_pre_ping=True, **_pool(url))
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        Table.metadata.create_all(engine)
    except (SQLAlchemyError, ModuleNotFoundError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        # Without its cause, whose message may hold the URL's password: a traceback would show it.
        place = f"database {url}: {first}" if "://" in url else "database: what was given is no URL"
        raise EnvironmentProblem(f"{place}; expected a URL of SQLAlchemy's that answers") from None
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session whose work is committed at the block's end, and undone if it raises.

    Within a route it is opened and closed in one call, so on one thread: were it a dependency, a request that holds the database
    could wait for a thread while all threads wait for the database.

    Raises:
        StorageError: the database does not take or give anything: its disk is full, it is damaged, or it is gone.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except (DatabaseError, PoolTimeout) as error:
        if isinstance(error, (IntegrityError, ProgrammingError)):
            raise  # ours to mend
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StorageError(f"database {engine.url}: {said}") from error


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file.absolute()}"


def _pool(url: str) -> dict[str, Any]:
    """SQLite has one writer at a time: here they queue for its one connection, in turn, where its own waiting is by sleeping."""
    if url.startswith("sqlite"):
        return {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": BUSY_S}
    return {"pool_size": 40, "max_overflow": 0}


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead log, so that readers never wait; each commit reaches the disk; writers queue instead of failing."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, and late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        # A transaction that reads first and writes later may find that somebody wrote between; this one waits its turn.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
