"""The tables of human feedback, on SQLite or any database that SQLAlchemy reaches.

A judgement is one committed transaction. Nothing is ever deleted: undoing a judgement marks it withdrawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any

from sqlalchemy import Engine, ForeignKey, Index, Integer, Text, create_engine, event
from sqlalchemy import text as sql
from sqlalchemy.exc import DatabaseError, DisconnectionError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import QueuePool

from rlhf_dist.errors import EnvironmentProblem, StorageError
from rlhf_dist.feedback.upgrade import upgrade

OPEN = "gold IS NULL AND done < needed"
STORE = "store"
"""The setting by which one store is told from others, for instance in a browser's cookies."""
BUSY_S = 30
"""How long a writer waits for another on SQLite."""

BEGIN_CHOOSING = "BEGIN; SET LOCAL synchronous_commit = off; SELECT pg_advisory_xact_lock(1919707238)"
"""PostgreSQL's, in one message; any number will do for the lock."""
IDLE_S = 5.0
"""A connection to PostgreSQL that nobody used for so long may be gone, and is tried first."""


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
    used: Mapped[datetime | None] = mapped_column(default=now)
    """When it last asked for a page, to the hour."""
    annotator: Mapped[Annotator] = relationship(lazy="joined")


class Setting(Table):
    """What holds for the whole store: `assignment` and `serve` name them."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Task(Table):
    """A question to people: which answer is better, in which order, how good one is, or what they say of it.

    Facts alone, so that a hundred thousand are counted without reading what people read.
    """

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    """Of what is asked, so that the same file can be loaded twice."""
    kind: Mapped[str]
    """`comparison`, `ranking`, `score` or `comment`."""
    place: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """A number by chance, by which tasks are met in an order of each one's own."""
    sources: Mapped[str] = mapped_column(Text, default="[]", server_default="[]")
    """As JSON, who gave each answer; never shown to annotators."""
    lengths: Mapped[str] = mapped_column(default="[]", server_default="[]")
    """As JSON, characters of each answer."""
    gold: Mapped[str | None]
    """What is known to be right, for quality: `a`, `b`, a ranking, or a score."""
    needed: Mapped[int]
    """Judgements wanted, each by another annotator; a gold question is for everybody."""
    done: Mapped[int] = mapped_column(default=0)
    """Judgements that stand."""
    text: Mapped[TaskText] = relationship(lazy="select", back_populates="task")

    __table_args__ = (
        Index("tasks_by_kind", "kind"),
        Index("open_places", "place", sqlite_where=sql(OPEN), postgresql_where=sql(OPEN)),
        Index("gold_tasks", "id", sqlite_where=sql("gold IS NOT NULL"), postgresql_where=sql("gold IS NOT NULL")),
    )


class TaskText(Table):
    """What people read of a task. As JSON, so that any database keeps any text, with NUL characters too."""

    __tablename__ = "task_texts"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    prompt: Mapped[str] = mapped_column(Text)
    """A text as JSON; of a chat, what was said, without any template's text."""
    answers: Mapped[str] = mapped_column(Text)
    """Their texts."""
    columns: Mapped[str] = mapped_column(Text, default="")
    """Of feedback, where the prompt's text alone is not what the policy was given: see `records.Prompt.source`."""
    criteria: Mapped[str] = mapped_column(Text, default="")
    """Further questions of this task alone; empty: the store's."""
    task: Mapped[Task] = relationship(lazy="select", back_populates="text")


class Judgement(Table):
    """What one annotator said to one task."""

    __tablename__ = "judgements"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    verdict: Mapped[str]
    """By the task's own order of answers, see `verdicts`."""
    comment: Mapped[str] = mapped_column(Text, default="")
    seconds: Mapped[float]
    """From when the task was shown first, breaks and all."""
    active: Mapped[float | None]
    """Seconds that were spent on it; null where a break cannot be told from work."""
    order_shown: Mapped[str] = mapped_column(default="", server_default="")
    """Places of the answers from left to right, as they were seen: `10` of a pair that was turned."""
    marks: Mapped[str] = mapped_column(Text, default="", server_default="")
    """As JSON, passages that were marked: see `marks`."""
    created: Mapped[datetime] = mapped_column(default=now)
    withdrawn: Mapped[datetime | None] = mapped_column(default=None)
    withdrawn_by: Mapped[int | None]
    """The annotator themself, or a supervisor."""
    task: Mapped[Task] = relationship(lazy="select")
    annotator: Mapped[Annotator] = relationship(lazy="select")
    ratings: Mapped[list[Rating]] = relationship(lazy="select", order_by="Rating.id")

    __table_args__ = (
        # Two clicks, two tabs, the back button: at most one judgement of a task by an annotator stands.
        Index(
            "one_that_stands",
            "task_id",
            "annotator_id",
            unique=True,
            sqlite_where=sql("withdrawn IS NULL"),
            postgresql_where=sql("withdrawn IS NULL"),
        ),
        Index("by_annotator", "annotator_id", "withdrawn"),
    )


class Rating(Table):
    """An answer to one of a task's further questions."""

    __tablename__ = "ratings"

    id: Mapped[int] = mapped_column(primary_key=True)
    judgement_id: Mapped[int] = mapped_column(ForeignKey("judgements.id"), index=True)
    criterion: Mapped[str]
    kind: Mapped[str]
    """`score`, `comparison` or `choice`, as `criteria.Criterion` has it."""
    place: Mapped[int | None]
    """Of the answer that it is about; null: of the task."""
    value: Mapped[str]
    low: Mapped[float | None]
    high: Mapped[float | None]
    """The scale of a score, as it was then."""


class Shown(Table):
    """A task that an annotator has before their eyes, which is meanwhile not given to others beyond what it needs."""

    __tablename__ = "shown"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), primary_key=True, index=True)
    since: Mapped[datetime] = mapped_column(default=now)
    undone: Mapped[bool] = mapped_column(default=False, server_default=sql("false"))
    """Whether they took a judgement of it back, and must get it again, whatever others said meanwhile."""


def open_database(url: str) -> Engine:
    """Connect, and make the tables that are missing.

    Args:
        url: SQLAlchemy's, e.g. `sqlite:///feedback.db` or `postgresql+psycopg://user@host/name`.

    Raises:
        EnvironmentProblem: the URL is none, its driver is missing, or nothing answers there.
    """
    try:
        engine = create_engine(url, **_pool(url))
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        elif engine.dialect.name == "postgresql":
            _prepare_postgres(engine)
        upgrade(engine, Table.metadata)
        with Session(engine) as session, session.begin():
            if session.get(Setting, STORE) is None:
                session.add(Setting(name=STORE, value=token_hex(4)))
    except (SQLAlchemyError, ModuleNotFoundError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        # Without its cause, whose message may hold the URL's password: a traceback would show it.
        place = f"database {url}: {first}" if "://" in url else "database: what was given is no URL"
        raise EnvironmentProblem(f"{place}; expected a URL of SQLAlchemy's that answers") from None
    return engine


@contextmanager
def transaction(engine: Engine, *, reads: bool = False, choosing: bool = False) -> Iterator[Session]:
    """A session whose work is committed at the block's end, and undone if it raises.

    With `reads` nothing is written: on SQLite it then waits for no writer, and none for it. With `choosing` nobody else chooses
    a task until the block's end, lest two take its last place; and as who has what before their eyes may be lost when the power
    is, but not when the server dies, it waits for no disk.

    Within a route it is opened and closed in one call, so on one thread: were it a dependency, a request that holds the database
    could wait for a thread while all threads wait for the database.

    Raises:
        StorageError: the database does not take or give anything: its disk is full, it is damaged, or it is gone.
    """
    try:
        bound = engine.execution_options(reads=reads, choosing=choosing)
        with Session(bound, expire_on_commit=False) as session, session.begin():
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
    """SQLite has one writer at a time, and its own waiting is by sleeping: the page's threads queue before they get here."""
    if url.startswith("sqlite"):
        # The last used connection first: it alone knows of no other's writing, and so keeps what it has read.
        return {
            "poolclass": QueuePool,
            "pool_size": 4,
            "max_overflow": 0,
            "pool_timeout": BUSY_S,
            "pool_use_lifo": True,
        }
    return {"pool_size": 40, "max_overflow": 0, "pool_use_lifo": True}


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead log, so that readers never wait; each commit reaches the disk; writers queue instead of failing."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, and late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if options.get('choosing') else 'FULL'}")
        # A transaction that reads first and writes later may find that somebody wrote between; this one waits its turn.
        connection.exec_driver_sql("BEGIN" if options.get("reads") else "BEGIN IMMEDIATE")


def _prepare_postgres(engine: Engine) -> None:
    """Few messages: a transaction begins with one, and a connection that was in use just now is not tried before use."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.autocommit = True  # the driver would begin transactions of its own, with a message more

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        choosing = connection.get_execution_options().get("choosing")
        connection.exec_driver_sql(BEGIN_CHOOSING if choosing else "BEGIN")

    @event.listens_for(engine, "checkin")
    def _given_back(_: Any, record: Any) -> None:
        record.info["used"] = monotonic()

    @event.listens_for(engine, "checkout")
    def _taken(connection: Any, record: Any, _: Any) -> None:
        if monotonic() - record.info.get("used", math.inf) > IDLE_S:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError(str(error)) from error  # the pool connects anew
