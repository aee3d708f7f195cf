"""Taking a judgement: once, whatever the browser does. And taking it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import criteria, marks
from rlhf_dist.feedback.assignment import Posed, show
from rlhf_dist.feedback.criteria import Criterion
from rlhf_dist.feedback.database import Judgement, Rating, Shown, Task, now
from rlhf_dist.feedback.orders import as_text, order_of
from rlhf_dist.feedback.verdicts import COMPARISONS, SAID, SCORES, SKIP, by_own_sides, ranking

LONGEST_COMMENT = 5000
BREAK_S = 300.0
"""Beyond it, a browser that does not tell for how long somebody was at it may have been left alone."""

# Built once, as in `assignment`.
_SEEN = (
    delete(Shown)
    .where(Shown.task_id == bindparam("task"), Shown.annotator_id == bindparam("me"))
    .returning(Shown.since)
)
_STANDS = insert(Judgement).returning(Judgement.id)
_ONE_MORE = update(Task).where(Task.id == bindparam("task")).values(done=Task.done + 1)


@dataclass(frozen=True)
class Form:
    """What a browser sent about a task."""

    values: Mapping[str, str]
    """By field; of several of one name the last."""
    lists: Mapping[str, Sequence[str]]

    def text(self, name: str) -> str:
        """A text as people meant it: line ends as one character, without what no database keeps."""
        return cleaned(self.values.get(name, ""))

    def texts(self, name: str) -> list[str]:
        """All texts of a name."""
        return [cleaned(each) for each in self.lists.get(name, ())]


def cleaned(text: str) -> str:
    r"""A text with line ends as `\n`, which browsers send as two characters, without NUL and halves of characters."""
    whole = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return whole.encode("utf-8", "replace").decode()


def record(session: Session, task: Posed, annotator_id: int, form: Form, asked: Sequence[Criterion]) -> None:
    """Take a judgement.

    Args:
        session: an open transaction; the caller commits it.
        task: what was judged.
        annotator_id: by whom.
        form: as the page sent it, so by the order that it showed.
        asked: further questions of the task.

    Raises:
        DataError: the verdict is none of the task's kind, something that is required is missing, or too long.
        IntegrityError: this annotator's judgement of the task stands already.
    """
    answers = json.loads(task.answers)
    order = order_of(task.id, annotator_id, len(answers))
    verdict, comment = _verdict(task.kind, form, order), _comment(task.kind, form)
    given = [] if verdict == SKIP else criteria.taken(asked, form.values, order)
    marked = marks.taken(form.texts("mark-answer"), form.texts("mark-text"), form.texts("mark-comment"), order, answers)
    connection = session.connection()
    since = connection.scalar(_SEEN, {"task": task.id, "me": annotator_id})
    seconds = (now() - since).total_seconds() if since else 0.0
    made = {
        "task_id": task.id,
        "annotator_id": annotator_id,
        "verdict": verdict,
        "comment": comment,
        "seconds": seconds,
        "active": _active(form.values.get("active", ""), seconds) if since else None,
        "order_shown": as_text(order),
        "marks": marks.as_text(marked),
    }
    number = connection.scalar(_STANDS, made)
    session.add_all(Rating(judgement_id=number, **vars(each)) for each in given)
    if verdict != SKIP:
        connection.execute(_ONE_MORE, {"task": task.id})


def _verdict(kind: str, form: Form, order: Sequence[int]) -> str:
    """The verdict by the task's own order."""
    said = form.values.get("verdict", "")
    if said == SKIP:
        return SKIP
    if kind == "ranking":
        return ranking(_ranks(form, len(order)), order)
    allowed = {"comparison": COMPARISONS, "score": tuple(map(str, SCORES)), "comment": (SAID,)}[kind]
    if said not in allowed:
        raise DataError(f"verdict is {said!r}; expected one of {', '.join((*allowed, SKIP))}")
    return by_own_sides(said, order) if kind == "comparison" else said


def _ranks(form: Form, answers: int) -> list[int]:
    given = [form.values.get(f"rank-{side}", "") for side in range(answers)]
    allowed = tuple(map(str, range(1, answers + 1)))
    for side, rank in enumerate(given):
        if rank not in allowed:
            raise DataError(f"the rank of answer {chr(65 + side)} is {rank!r}; expected one of {', '.join(allowed)}")
    return [int(rank) for rank in given]


def _comment(kind: str, form: Form) -> str:
    comment = form.text("comment").strip()
    if len(comment) > LONGEST_COMMENT:
        raise DataError(f"the comment has {len(comment)} characters; expected at most {LONGEST_COMMENT}")
    if kind == "comment" and not comment and form.values.get("verdict") != SKIP:
        raise DataError("the comment is empty; expected a few words, or skip the task")
    return comment


def _active(told: str, seconds: float) -> float | None:
    """Seconds at work: what the browser counted, if that can be; else all, unless there was time for a break."""
    try:
        counted = float(told)
    except ValueError:
        return seconds if seconds <= BREAK_S else None
    return counted if 0 <= counted <= seconds + 1 else seconds if seconds <= BREAK_S else None


def undo(session: Session, annotator_id: int, judgement_id: int) -> int | None:
    """Withdraw a judgement of one's own, if it stands; returns its task, to be shown again. Posed twice, it happens once."""
    found = withdraw(session, judgement_id, by=annotator_id, of=annotator_id)
    if found is not None:
        show(session, found, annotator_id, undone=True)
    return found


def withdraw(session: Session, judgement_id: int, *, by: int, of: int | None = None) -> int | None:
    """Let a judgement stand no more, if it does; returns its task, which lacks one again.

    Args:
        session: an open transaction; the caller commits it.
        judgement_id: which.
        by: who withdraws it.
        of: only if it is this annotator's; None: whoever's.
    """
    wanted = (Judgement.id == judgement_id) & Judgement.withdrawn.is_(None)
    if of is not None:
        wanted &= Judgement.annotator_id == of
    gone = update(Judgement).where(wanted).values(withdrawn=now(), withdrawn_by=by)
    found: Any = session.execute(gone.returning(Judgement.task_id, Judgement.verdict)).one_or_none()
    if found is None:
        return None
    if found.verdict != SKIP:
        session.execute(update(Task).where(Task.id == found.task_id).values(done=Task.done - 1))
    return int(found.task_id)


def withdraw_all(session: Session, annotator_id: int, *, by: int) -> int:
    """Let nothing that somebody said stand any more; returns how many judgements."""
    stands = (Judgement.annotator_id == annotator_id) & Judgement.withdrawn.is_(None)
    judged = select(Judgement.task_id).where(stands, Judgement.verdict != SKIP)
    session.execute(update(Task).where(Task.id.in_(judged)).values(done=Task.done - 1))
    gone: Any = session.execute(update(Judgement).where(stands).values(withdrawn=now(), withdrawn_by=by))
    return int(gone.rowcount)
