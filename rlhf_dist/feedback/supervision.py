"""What a supervisor sees: progress, pace, agreement, gold questions, and who of two policies wins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rlhf_dist.data.feedback import Judged
from rlhf_dist.evaluation.intervals import WinRate, win_rate
from rlhf_dist.feedback.aggregate import Reliability, aggregate
from rlhf_dist.feedback.agreement import Agreement
from rlhf_dist.feedback.assignment import SKIP
from rlhf_dist.feedback.database import Annotator, Judgement, Task

LABELS = {"a_much": 1.0, "a": 1.0, "tie": 0.5, "both_bad": 0.5, "b": 0.0, "b_much": 0.0}
"""What a comparison's verdict says of P(a is better)."""


@dataclass(frozen=True)
class Person:
    """One annotator's work."""

    name: str
    judged: int
    skipped: int
    withdrawn: int
    seconds: float | None
    """Median per judgement."""
    gold: tuple[int, int]
    """Gold questions answered rightly, and answered."""
    reliability: Reliability | None


@dataclass(frozen=True)
class Overview:
    """Everything on the supervisor's page."""

    people: list[Person]
    tasks: int
    finished: int
    """Tasks that have all judgements that they need."""
    judgements: int
    agreement: Agreement | None
    contests: list[tuple[str, str, WinRate]]
    """Of each two sources that were compared: the first's win rate over the second."""


@dataclass(frozen=True)
class Everything:
    """What the database holds, read at once, so that nobody waits while it is made sense of."""

    judgements: Sequence[Judgement]
    annotators: Sequence[Annotator]
    tasks: int
    finished: int


def everything(session: Session) -> Everything:
    """Read the whole database."""
    return Everything(
        judgements=session.scalars(select(Judgement).order_by(Judgement.id)).all(),
        annotators=session.scalars(select(Annotator).order_by(Annotator.name)).all(),
        tasks=session.scalar(select(func.count()).select_from(Task)) or 0,
        finished=session.scalar(select(func.count()).select_from(Task).where(Task.done >= Task.needed)) or 0,
    )


def overview(found: Everything) -> Overview:
    """Agreement, reliabilities and win rates; seconds, for many judgements."""
    standing = [one for one in found.judgements if one.withdrawn is None]
    judged = [one for one in standing if one.verdict != SKIP]
    comparisons = [as_judged(one) for one in judged if one.task.kind == "comparison"]
    made = aggregate(comparisons, "soft")
    reliability = {one.name: one for one in made.annotators}
    return Overview(
        people=[
            _person(annotator, [one for one in found.judgements if one.annotator_id == annotator.id], reliability)
            for annotator in found.annotators
        ],
        tasks=found.tasks,
        finished=found.finished,
        judgements=len(judged),
        agreement=made.agreement,
        contests=contests(judged),
    )


def as_judged(one: Judgement) -> Judged:
    """A comparison as the reward model's data."""
    task = one.task
    answers = (task.answer_a, task.answer_b or "")
    return Judged(
        "comparisons", task.prompt, answers, LABELS[one.verdict], "page", f"judgement {one.id}", one.annotator.name
    )


def contests(judged: Sequence[Judgement]) -> list[tuple[str, str, WinRate]]:
    """Win rates of the sources that were compared, each task counting once whatever the number of its judgements."""
    by_pair: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in judged:
        task = one.task
        if task.kind == "comparison" and task.source_a != task.source_b and task.gold is None:
            straight = task.source_a < task.source_b
            pair = (task.source_a, task.source_b) if straight else (task.source_b, task.source_a)
            label = LABELS[one.verdict]
            by_pair[pair][task.id].append(label if straight else 1 - label)
    return [
        (*pair, win_rate([float(np.mean(labels)) for labels in tasks.values()]))
        for pair, tasks in sorted(by_pair.items())
    ]


def _person(annotator: Annotator, all_of_them: Sequence[Judgement], reliability: dict[str, Reliability]) -> Person:
    standing = [one for one in all_of_them if one.withdrawn is None]
    judged = [one for one in standing if one.verdict != SKIP]
    gold = [one for one in judged if one.task.gold is not None]
    return Person(
        name=annotator.name,
        judged=len(judged),
        skipped=len(standing) - len(judged),
        withdrawn=len(all_of_them) - len(standing),
        seconds=float(np.median([one.seconds for one in judged])) if judged else None,
        gold=(sum(is_right(one) for one in gold), len(gold)),
        reliability=reliability.get(annotator.name),
    )


def is_right(one: Judgement) -> bool:
    """Whether a gold question was answered as it should be; a score may be one step off."""
    gold = one.task.gold or ""
    if one.task.kind == "score":
        return abs(int(one.verdict) - int(gold)) <= 1
    return one.verdict.partition("_")[0] == gold and one.verdict != "both_bad"
