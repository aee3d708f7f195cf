"""Which task somebody gets next, and taking their judgement: once, whatever the browser does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.database import Judgement, Shown, Task, now

VERDICTS = ("a_much", "a", "tie", "both_bad", "b", "b_much")
"""Of a comparison, by the task's own sides."""
SKIP, SAID = "skip", "said"
MIRROR = {"a_much": "b_much", "a": "b", "b": "a", "b_much": "a_much"}
SHOWN_FOR = timedelta(minutes=15)
"""How long a task that was shown is kept for who saw it."""
CHOOSING = 0x72_6C_68_66
"""Number of the lock under which tasks are chosen; any will do."""
SCORES = (1, 2, 3, 4, 5)
LONGEST_COMMENT = 5000


@dataclass(frozen=True)
class Progress:
    """How far an annotator is."""

    judged: int
    left: int
    seconds: float | None
    """Median per judgement; None before the first."""


def next_task(session: Session, annotator_id: int) -> Task | None:
    """A task that this annotator has not judged and that needs judgements; it is marked as shown. None: nothing is left.

    What was shown to them and not judged comes back first. A gold question goes to everybody, in its place among the others.
    """
    _one_at_a_time(session)
    task = _shown_before(session, annotator_id)
    if task is None:
        found = [_first(session, annotator_id, gold=gold) for gold in (True, False)]
        task = min((one for one in found if one is not None), key=lambda one: one.id, default=None)
    if task is not None:
        show(session, task.id, annotator_id)
    return task


def _one_at_a_time(session: Session) -> None:
    """Let nobody else choose until this transaction ends, lest two take a task's last place; SQLite's queue anyhow."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(CHOOSING)))


def _shown_before(session: Session, annotator_id: int) -> Task | None:
    mine = (Shown.annotator_id == annotator_id) & ~_judged_by(annotator_id)
    wanted = or_(Task.gold.is_not(None), Task.done < Task.needed)
    return session.scalar(
        select(Task).join(Shown, Shown.task_id == Task.id).where(mine, wanted).order_by(Task.id).limit(1)
    )


def _first(session: Session, annotator_id: int, *, gold: bool) -> Task | None:
    """The first gold question not judged by them, or the first other task that lacks judgements which nobody is about to give.

    Each reads its own partial index in order and stops at the first hit, however many tasks are finished.
    """
    others = (
        select(func.count())
        .select_from(Shown)
        .where(Shown.task_id == Task.id, Shown.annotator_id != annotator_id, Shown.since > now() - SHOWN_FOR)
        .scalar_subquery()
    )
    wanted = Task.gold.is_not(None) if gold else (Task.done < Task.needed) & (Task.done + others < Task.needed)
    kind = Task.gold.is_not(None) if gold else Task.gold.is_(None)
    return session.scalar(select(Task).where(kind, wanted, ~_judged_by(annotator_id)).order_by(Task.id).limit(1))


def _judged_by(annotator_id: int) -> Any:
    return exists().where(
        Judgement.task_id == Task.id, Judgement.annotator_id == annotator_id, Judgement.withdrawn.is_(None)
    )


def show(session: Session, task_id: int, annotator_id: int) -> None:
    """Note that somebody has a task before their eyes, from when they first had it."""
    shown = session.get(Shown, (task_id, annotator_id))
    if shown is None:
        with suppress(IntegrityError), session.begin_nested():  # another tab was quicker
            session.add(Shown(task_id=task_id, annotator_id=annotator_id))
    elif shown.since < now() - SHOWN_FOR:
        shown.since = now()


def is_flipped(task_id: int, annotator_id: int) -> bool:
    """Whether this annotator sees the second answer on the left: a coin that falls alike on every visit."""
    return bool(blake2b(f"{task_id}/{annotator_id}".encode(), digest_size=1).digest()[0] & 1)


def record(session: Session, task: Task, annotator_id: int, verdict: str, comment: str) -> bool:
    """Take a judgement; False if this annotator's judgement of the task stands already.

    Args:
        session: an open transaction; the caller commits it.
        task: what was judged.
        annotator_id: by whom.
        verdict: as the page sent it, so by the sides that it showed.
        comment: free text.

    Raises:
        DataError: the verdict is none of the task's kind, or a comment is missing or too long.
    """
    found = checked(task, verdict, comment, flipped=is_flipped(task.id, annotator_id))
    shown = session.get(Shown, (task.id, annotator_id))
    seconds = (now() - shown.since).total_seconds() if shown else 0.0
    try:
        with session.begin_nested():
            made = Judgement(
                task_id=task.id, annotator_id=annotator_id, verdict=found, comment=comment.strip(), seconds=seconds
            )
            session.add(made)
    except IntegrityError:
        return False
    if shown is not None:
        session.delete(shown)
    if found != SKIP:
        session.execute(update(Task).where(Task.id == task.id).values(done=Task.done + 1))
    return True


def checked(task: Task, verdict: str, comment: str, *, flipped: bool) -> str:
    """The verdict by the task's own sides.

    Raises:
        DataError: it is none of the task's kind, or a comment is missing or too long.
    """
    if len(comment) > LONGEST_COMMENT:
        raise DataError(f"the comment has {len(comment)} characters; expected at most {LONGEST_COMMENT}")
    if verdict == SKIP:
        return SKIP
    allowed = {"comparison": VERDICTS, "score": tuple(map(str, SCORES)), "comment": (SAID,)}[task.kind]
    if verdict not in allowed:
        raise DataError(f"verdict is {verdict!r}; expected one of {', '.join((*allowed, SKIP))}")
    if task.kind == "comment" and not comment.strip():
        raise DataError("the comment is empty; expected a few words, or skip the task")
    return MIRROR.get(verdict, verdict) if flipped else verdict


def newest(session: Session, annotator_id: int) -> Judgement | None:
    """An annotator's newest judgement that stands: what undo would take back."""
    return session.scalar(
        select(Judgement)
        .where(Judgement.annotator_id == annotator_id, Judgement.withdrawn.is_(None))
        .order_by(Judgement.id.desc())
        .limit(1)
    )


def undo(session: Session, annotator_id: int, judgement_id: int) -> int | None:
    """Withdraw a judgement of one's own, if it stands; returns its task, to be shown again. Asked twice, it happens once."""
    mine = (Judgement.id == judgement_id) & (Judgement.annotator_id == annotator_id) & Judgement.withdrawn.is_(None)
    found: Judgement | None = session.scalar(update(Judgement).where(mine).values(withdrawn=now()).returning(Judgement))
    if found is None:
        return None
    if found.verdict != SKIP:
        session.execute(update(Task).where(Task.id == found.task_id).values(done=Task.done - 1))
    show(session, found.task_id, annotator_id)
    return found.task_id


def progress(session: Session, annotator_id: int) -> Progress:
    """How many judgements of an annotator stand, how many tasks are open to them, and their pace."""
    stands = (Judgement.annotator_id == annotator_id) & Judgement.withdrawn.is_(None)
    judged = session.scalar(select(func.count()).select_from(Judgement).where(stands)) or 0
    is_open = or_(Task.gold.is_not(None), Task.done < Task.needed)
    opened = session.scalar(select(func.count()).select_from(Task).where(is_open)) or 0
    mine = session.scalar(select(func.count()).select_from(Judgement).join(Task).where(stands, is_open)) or 0
    left = opened - mine
    recent = session.scalars(select(Judgement.seconds).where(stands).order_by(Judgement.id.desc()).limit(50)).all()
    return Progress(judged, left, sorted(recent)[len(recent) // 2] if recent else None)
