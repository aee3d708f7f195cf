"""Single judgements and tasks, for supervisors: who said what, filtered, some at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import marks
from rlhf_dist.feedback.assignment import Posed, task_of
from rlhf_dist.feedback.database import Annotator, Judgement, Task
from rlhf_dist.feedback.marks import Mark
from rlhf_dist.feedback.verdicts import LETTERS, SKIP, is_right, ranked

PAGE = 50
STATES = ("standing", "withdrawn", "all")
KINDS_OF_TASKS = ("all", "open", "finished", "gold", "skipped", "disputed")
WORDS = {
    "a_much": "A by far",
    "a": "A",
    "tie": "equal",
    "both_bad": "both bad",
    "b": "B",
    "b_much": "B by far",
    "skip": "skipped",
    "said": "comment",
}


@dataclass(frozen=True)
class Filter:
    """Which judgements are wanted."""

    person: int | None = None
    task: int | None = None
    verdict: str = ""
    remarks: bool = False
    """Only those with a comment or marked passages."""
    state: str = "standing"
    before: int | None = None
    """Only those with a lower id: the next page."""


@dataclass(frozen=True)
class Opinion:
    """One judgement, to be read."""

    judgement: Judgement
    words: str
    """The verdict, by the task's own letters."""
    right: bool | None
    """Of a gold question."""
    marks: list[Mark]

    @property
    def ratings(self) -> list[str]:
        """What was said to further questions."""
        return [
            f"{each.criterion}{'' if each.place is None else ' of ' + LETTERS[each.place].upper()}: "
            f"{WORDS.get(each.value, each.value) if each.kind == 'comparison' else each.value}"
            for each in self.judgement.ratings
        ]


def said(one: Judgement) -> Opinion:
    """A judgement with its verdict in words."""
    gold, kind = one.task.gold, one.task.kind
    right = None if gold is None or one.verdict == SKIP else is_right(kind, one.verdict, gold)
    return Opinion(one, words(kind, one.verdict), right, marks.from_text(one.marks))


def words(kind: str, verdict: str) -> str:
    """A verdict by the task's own letters."""
    if kind == "ranking" and verdict != SKIP:
        return " > ".join(" = ".join(LETTERS[place].upper() for place in group) for group in ranked(verdict))
    return WORDS.get(verdict, verdict)


def judgements(session: Session, wanted: Filter) -> list[Opinion]:
    """The newest judgements that are wanted, one page of them.

    Raises:
        DataError: a state is none of `STATES`.
    """
    if wanted.state not in STATES:
        raise DataError(f"state is {wanted.state!r}; expected one of {', '.join(STATES)}")
    conditions: list[Any] = []
    if wanted.state != "all":
        gone = Judgement.withdrawn.is_not(None)
        conditions.append(gone if wanted.state == "withdrawn" else ~gone)
    if wanted.person is not None:
        conditions.append(Judgement.annotator_id == wanted.person)
    if wanted.task is not None:
        conditions.append(Judgement.task_id == wanted.task)
    if wanted.verdict:
        conditions.append(Judgement.verdict == wanted.verdict)
    if wanted.remarks:
        conditions.append(or_(Judgement.comment != "", Judgement.marks != ""))
    if wanted.before is not None:
        conditions.append(Judgement.id < wanted.before)
    query = select(Judgement).where(*conditions).order_by(Judgement.id.desc()).limit(PAGE)
    return [said(one) for one in session.scalars(_whole(query))]


def _whole(query: Select[Any]) -> Select[Any]:
    """With all that is shown of each."""
    return query.options(
        joinedload(Judgement.task).joinedload(Task.text),
        joinedload(Judgement.annotator),
        selectinload(Judgement.ratings),
    )


@dataclass(frozen=True)
class Listed:
    """A task in a list."""

    task: Task
    prompt: str
    verdicts: list[tuple[str, str]]
    """Who said what, of what stands."""


def tasks(session: Session, which: str, after: int | None = None) -> list[Listed]:
    """Tasks in the order of their numbers, one page of them.

    Args:
        session: of the store.
        which: of `KINDS_OF_TASKS`; `skipped` are those that some skipped and nobody judged, `disputed` those on which people
            chose different sides.
        after: only those with a higher id: the next page.

    Raises:
        DataError: `which` is none of them.
    """
    if which not in KINDS_OF_TASKS:
        raise DataError(f"tasks are {which!r}; expected one of {', '.join(KINDS_OF_TASKS)}")
    conditions = _conditions(which)
    if after is not None:
        conditions.append(Task.id > after)
    query = select(Task).where(*conditions).options(joinedload(Task.text)).order_by(Task.id).limit(PAGE)
    found = list(session.scalars(query))
    verdicts: dict[int, list[tuple[str, str]]] = {task.id: [] for task in found}
    told = (
        select(Judgement.task_id, Annotator.name, Judgement.verdict, Task.kind)
        .join(Annotator)
        .join(Task)
        .where(Judgement.task_id.in_([*verdicts]), Judgement.withdrawn.is_(None))
        .order_by(Judgement.id)
    )
    for task, name, verdict, kind in session.execute(told):
        verdicts[task].append((name, words(kind, verdict)))
    return [Listed(task, json.loads(task.text.prompt), verdicts[task.id]) for task in found]


def _conditions(which: str) -> list[Any]:
    own = and_(Judgement.task_id == Task.id, Judgement.withdrawn.is_(None))
    sides = select(func.count(func.distinct(func.substr(Judgement.verdict, 1, 1)))).where(
        own, Judgement.verdict.in_(["a", "a_much", "b", "b_much"])
    )
    skips = select(func.count()).select_from(Judgement).where(own, Judgement.verdict == SKIP)
    conditions: dict[str, list[Any]] = {
        "all": [],
        "open": [Task.gold.is_(None), Task.done < Task.needed],
        "finished": [Task.done >= Task.needed],
        "gold": [Task.gold.is_not(None)],
        "skipped": [Task.done == 0, skips.scalar_subquery() > 0],
        "disputed": [Task.kind == "comparison", Task.done > 1, sides.scalar_subquery() > 1],
    }
    return conditions[which]


def one_task(session: Session, task_id: int) -> tuple[Task, Posed, Sequence[Opinion]]:
    """A task, what people read of it, and all that was said to it, also what was withdrawn.

    Raises:
        DataError: there is none.
    """
    task, asked = session.get(Task, task_id), task_of(session, task_id)
    if task is None or asked is None:
        raise DataError(f"there is no task {task_id}; expected one of the list")
    found = session.scalars(_whole(select(Judgement).where(Judgement.task_id == task_id).order_by(Judgement.id)))
    return task, asked, [said(one) for one in found]
