"""Which task somebody gets next, in an order of their own, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Executable, bindparam, case, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rlhf_dist.feedback.database import Judgement, Shown, Task, TaskText, now
from rlhf_dist.feedback.orders import chance, probe
from rlhf_dist.feedback.verdicts import SKIP

SHOWN_FOR = timedelta(minutes=15)
"""How long a task that was shown is kept for who saw it."""
ROUND = 7919
"""Gold questions come in the order of their places round this circle, from another point for each."""
RECENT = 50
"""Judgements of which the pace is the median."""

# Statements are built once, since building one takes as long as running it; those that bring no objects run on the connection.
ME: BindParameter[Any] = bindparam("me")
SINCE: BindParameter[Any] = bindparam("since")
START: BindParameter[Any] = bindparam("start")
TASK: BindParameter[Any] = bindparam("task")
_ASKED = (
    select(
        Task.id,
        Task.digest,
        Task.kind,
        Task.sources,
        TaskText.prompt,
        TaskText.answers,
        TaskText.columns,
        TaskText.criteria,
    )
    .select_from(Task)
    .outerjoin(TaskText)
)
_JUDGED_BY_ME = exists().where(
    Judgement.task_id == Task.id, Judgement.annotator_id == ME, Judgement.withdrawn.is_(None)
)
_BY_NUMBER = _ASKED.where(Task.id == TASK)
_SHOWN_TO_ME = (
    _ASKED.join(Shown, Shown.task_id == Task.id)
    .where(
        Shown.annotator_id == ME,
        ~_JUDGED_BY_ME,
        or_(Task.gold.is_not(None), Task.done < Task.needed, Shown.undone),
    )
    .order_by(Shown.undone.desc(), Shown.since.desc(), Task.id)
    .limit(1)
)
_SHOW = insert(Shown)
_GOLD = (
    _ASKED.where(Task.gold.is_not(None), ~_JUDGED_BY_ME)
    .order_by((Task.place % ROUND + START) % ROUND, Task.id)
    .limit(1)
)
_BEFORE_OTHERS = (
    select(func.count())
    .select_from(Shown)
    .where(Shown.task_id == Task.id, Shown.annotator_id != ME, Shown.since > SINCE)
    .scalar_subquery()
)
_FROM_START, _UP_TO_START = (
    _ASKED.where(
        Task.gold.is_(None),
        Task.done < Task.needed,
        Task.done + _BEFORE_OTHERS < Task.needed,
        ~_JUDGED_BY_ME,
        side,
    )
    .order_by(Task.place)
    .limit(1)
    for side in (Task.place >= START, Task.place < START)
)
_MINE = (Judgement.annotator_id == ME) & Judgement.withdrawn.is_(None)
_COUNTS = (
    select(
        func.count().filter(Judgement.verdict != SKIP),
        func.count().filter(Judgement.verdict == SKIP),
        func.count().filter(Task.gold.is_not(None)),
        func.count().filter(or_(Task.gold.is_not(None), Task.done < Task.needed)),
        func.max(Judgement.id),
        select(func.count()).select_from(Shown).where(Shown.annotator_id == ME).scalar_subquery(),
    )
    .select_from(Judgement)
    .join(Task)
    .where(_MINE)
)
_RECENT = select(Judgement.active).where(_MINE, Judgement.verdict != SKIP).order_by(Judgement.id.desc()).limit(RECENT)


class Posed(NamedTuple):
    """Of a `Task` and its `TaskText`, what it takes to show it and to take a judgement of it."""

    id: int
    digest: str
    kind: str
    sources: str
    prompt: str
    answers: str
    columns: str
    criteria: str


@dataclass(frozen=True)
class There:
    """What a store has for everybody."""

    open: int
    """Tasks, other than gold questions, that lack judgements."""
    gold: int
    """Gold questions."""


@dataclass(frozen=True)
class Progress:
    """How far an annotator is."""

    judged: int
    """Judgements of theirs that stand, without skips."""
    skipped: int
    golden: int
    """Gold questions that they have judged or skipped."""
    waiting: int
    """Tasks that lack judgements and that they have not judged or skipped; others may have some before their eyes."""
    newest: int | None
    """Their newest judgement that stands: what undo would take back."""
    shown: int
    """Tasks that are noted as being before their eyes."""

    @property
    def whole(self) -> int:
        """What there is for them, done or not."""
        return self.judged + self.waiting


def task_of(session: Session, number: int) -> Posed | None:
    """A task with what people read of it."""
    return _one(session, _BY_NUMBER, {"task": number})


def _one(session: Session, wanted: Executable, told: dict[str, Any]) -> Posed | None:
    found = session.connection().execute(wanted, told).first()
    return Posed(*found) if found else None


def next_task(session: Session, annotator_id: int, there: There) -> tuple[Posed | None, Progress]:
    """A task that this annotator has not judged and that needs judgements, and how far they are; it is marked as shown.

    What was shown to them and not judged comes back first. A gold question goes to everybody, spread over their work.

    Args:
        session: an open transaction that is `choosing`; the caller commits it.
        annotator_id: who asks.
        there: what the store has.

    Returns:
        The task, None if there is none now; and their progress.
    """
    mine = progress(session, annotator_id, there)
    task = _one(session, _SHOWN_TO_ME, {"me": annotator_id}) if mine.shown else None
    if task is None:
        task = _chosen(session, annotator_id, mine, there)
        if task is not None:  # it was not shown before, and nobody else chooses now
            session.connection().execute(_SHOW, {"task_id": task.id, "annotator_id": annotator_id})
    return task, mine


def _chosen(session: Session, annotator_id: int, mine: Progress, there: There) -> Posed | None:
    gold = _next_gold(session, annotator_id, mine, there) if _is_due(annotator_id, mine, there) else None
    others = _next_open(session, annotator_id, mine.judged + mine.skipped) if gold is None else None
    return gold or others or _next_gold(session, annotator_id, mine, there)


def _is_due(annotator_id: int, mine: Progress, there: There) -> bool:
    """Whether a gold question comes now: the n-th at a chance place within the n-th part of what there is to judge."""
    others = mine.judged + mine.skipped - mine.golden
    place = mine.golden + chance("gold", annotator_id, mine.golden)
    return others * there.gold >= place * (others + there.open)


def _next_gold(session: Session, annotator_id: int, mine: Progress, there: There) -> Posed | None:
    if mine.golden >= there.gold:
        return None
    return _one(session, _GOLD, {"me": annotator_id, "start": probe(annotator_id, 0) % ROUND})


def _next_open(session: Session, annotator_id: int, judged: int) -> Posed | None:
    """A task that lacks judgements which nobody is about to give: the first from a place by chance on, round and round.

    It reads the index of open places in order and stops at the first hit, however many tasks are finished.
    """
    told = {"me": annotator_id, "since": now() - SHOWN_FOR, "start": probe(annotator_id, judged)}
    return _one(session, _FROM_START, told) or _one(session, _UP_TO_START, told)


def what_is_there(session: Session) -> There:
    """Count what there is to judge."""
    lacking = select(func.count()).select_from(Task).where(Task.gold.is_(None), Task.done < Task.needed)
    golden = select(func.count()).select_from(Task).where(Task.gold.is_not(None))
    return There(*session.execute(select(lacking.scalar_subquery(), golden.scalar_subquery())).one())


def show(session: Session, task_id: int, annotator_id: int, *, undone: bool = False) -> None:
    """Note that somebody has a task before their eyes, from when they first had it."""
    kept = (Shown.task_id == task_id) & (Shown.annotator_id == annotator_id)
    too_long_ago = case((Shown.since < now() - SHOWN_FOR, now()), else_=Shown.since)
    again = update(Shown).where(kept).values(since=too_long_ago, undone=Shown.undone | undone)
    connection = session.connection()
    if not connection.execute(again).rowcount:
        with suppress(IntegrityError), connection.begin_nested():  # another tab was quicker
            connection.execute(_SHOW, {"task_id": task_id, "annotator_id": annotator_id, "undone": undone})


def progress(session: Session, annotator_id: int, there: There) -> Progress:
    """How many judgements of an annotator stand, and how many tasks wait for them."""
    judged, skipped, asked, still_open, newest, shown = (
        session.connection().execute(_COUNTS, {"me": annotator_id}).one()
    )
    return Progress(judged, skipped, asked, max(0, there.open + there.gold - still_open), newest, shown)


def pace(session: Session, annotator_id: int) -> float | None:
    """Seconds that an annotator took of late, as the median, breaks left out; None before the first judgement."""
    found = session.connection().scalars(_RECENT, {"me": annotator_id})
    return median([each for each in found if each is not None])


def median(values: Sequence[float]) -> float | None:
    """The middle one of some numbers, the upper of two; None of none."""
    return sorted(values)[len(values) // 2] if values else None


def ask_again(session: Session, annotator_id: int) -> int:
    """Let somebody see what they have skipped once more; returns how many tasks."""
    skipped = (Judgement.annotator_id == annotator_id) & Judgement.withdrawn.is_(None) & (Judgement.verdict == SKIP)
    gone: Any = session.execute(update(Judgement).where(skipped).values(withdrawn=now(), withdrawn_by=annotator_id))
    return int(gone.rowcount)


def let_go(session: Session, annotator_id: int) -> None:
    """Give back to others what somebody has before their eyes."""
    session.execute(delete(Shown).where(Shown.annotator_id == annotator_id))
