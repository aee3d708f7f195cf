"""What a supervisor sees: progress, pace, agreement, who may be careless and why, and who of two policies wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rlhf_dist.evaluation.intervals import Interval, WinRate, interval, win_rate
from rlhf_dist.evaluation.length_bias import LengthBias, length_bias
from rlhf_dist.feedback.agreement import Agreement, agreement
from rlhf_dist.feedback.database import Annotator, Judgement, Task, Visit
from rlhf_dist.feedback.dawid_skene import dawid_skene_arrays
from rlhf_dist.feedback.facts import Array, Facts, Scores, Tasks, facts, scores, stands
from rlhf_dist.feedback.suspicion import Conduct, suspicions
from rlhf_dist.feedback.verdicts import SKIP, is_right

Weighing = Literal["all", "trusted", "weighed"]
WEIGHINGS: dict[Weighing, str] = {
    "all": "every annotator counts alike",
    "trusted": "those who are suspected are left out",
    "weighed": "each counts by how far their reliability is above guessing",
}


@dataclass(frozen=True)
class Person:
    """One annotator's work."""

    id: int
    name: str
    supervisor: bool
    judged: int
    skipped: int
    withdrawn: int
    visits: int
    """Browsers that are signed in."""
    conduct: Conduct
    suspicions: list[str]
    """Sentences; none: not suspected."""


@dataclass(frozen=True)
class Contest:
    """Two sources that were compared."""

    first: str
    second: str
    won: WinRate
    """The first's over the second, each task counting once."""
    length: LengthBias


@dataclass(frozen=True)
class ScoreOf:
    """Scores of one source's answers."""

    source: str
    criterion: str
    scale: tuple[float, float]
    mean: Interval
    tasks: int


@dataclass(frozen=True)
class Overview:
    """Everything on the supervisor's page."""

    people: list[Person]
    tasks: int
    finished: int
    """Tasks that have all judgements that they need."""
    only_skipped: int
    """Tasks that some have skipped and nobody has judged."""
    judgements: int
    agreement: Agreement | None
    contests: list[Contest]
    scores: list[ScoreOf]
    weighing: Weighing
    left_out: list[str]
    """Annotators who do not count in win rates."""


@dataclass(frozen=True)
class Version:
    """What a store has when it is looked at: as long as it is the same, so is everything that is made of it."""

    tasks: tuple[int, ...]
    """Their number, that of gold questions, and how many judgements they want."""
    judgements: tuple[int, ...]
    """The newest, and how many are withdrawn; people, and browsers that are signed in."""


def version(session: Session) -> Version:
    """The store's, in a query that reads no text."""
    parts = (
        select(func.count()).select_from(Task),
        select(func.count()).select_from(Task).where(Task.gold.is_not(None)),
        select(func.coalesce(func.max(Task.needed), 0)),
        select(func.coalesce(func.max(Judgement.id), 0)),
        select(func.count()).select_from(Judgement).where(Judgement.withdrawn.is_not(None)),
        select(func.count()).select_from(Annotator),
        select(func.count()).select_from(Visit),
    )
    found = tuple(session.execute(select(*(each.scalar_subquery() for each in parts))).one())
    return Version(found[:3], found[3:])


def overview(session: Session, weighing: Weighing = "all", tasks: Tasks | None = None) -> Overview:
    """Agreement, reliabilities and win rates of all judgements that stand.

    Args:
        session: of the store.
        weighing: how annotators count in win rates.
        tasks: of `facts.compared`, as long as there are no others; None: they are read, too.
    """
    found = facts(session, tasks)
    reliability = _reliability(found)
    conduct = _conduct(session, found, reliability)
    people = _people(session, found, conduct)
    suspected = [one.id for one in people if one.suspicions]
    weights = _weights(found, reliability, suspected, weighing)
    out = [one.name for one in people if one.judged and weighing != "all" and weights.get(one.id, 1.0) == 0]
    counts = _counts(session)
    return Overview(
        people=people,
        tasks=counts[0],
        finished=counts[1],
        only_skipped=counts[2],
        judgements=sum(found.judged.values()),
        agreement=_agreement(session, found),
        contests=_contests(found, weights),
        scores=[_score(each) for each in scores(session)],
        weighing=weighing,
        left_out=out,
    )


def _counts(session: Session) -> tuple[int, int, int]:
    skipped = select(Judgement.task_id).where(Judgement.withdrawn.is_(None), Judgement.verdict == SKIP)
    parts = (
        select(func.count()).select_from(Task),
        select(func.count()).select_from(Task).where(Task.done >= Task.needed),
        select(func.count()).select_from(Task).where(Task.done == 0, Task.id.in_(skipped)),
    )
    tasks, finished, only_skipped = session.execute(select(*(each.scalar_subquery() for each in parts))).one()
    return tasks, finished, only_skipped


def _reliability(found: Facts) -> dict[int, float]:
    """Of those who shared a comparison with others, by Dawid and Skene's model."""
    votes = found.votes
    decided = votes.label != 0.5
    pair, annotator = votes.pair[decided], votes.annotator[decided]
    shared = np.bincount(pair, minlength=1)[pair] > 1
    if not shared.any():
        return {}
    people, worker = np.unique(annotator[shared], return_inverse=True)
    _, task = np.unique(pair[shared], return_inverse=True)
    _, reliability = dawid_skene_arrays(task, worker, votes.label[decided][shared] == 1)
    return dict(zip(people.tolist(), reliability.tolist(), strict=True))


def _agreement(session: Session, found: Facts) -> Agreement | None:
    named = {one.id: one.name for one in session.scalars(select(Annotator))}
    votes = found.votes
    people, worker = np.unique(votes.annotator, return_inverse=True)
    return agreement(votes.pair, worker, (2 * votes.label).astype(int), [named[one] for one in people.tolist()])


def _conduct(session: Session, found: Facts, reliability: Mapping[int, float]) -> dict[int, Conduct]:
    votes, gold = found.votes, _gold(session)
    known = found.pairs.known[votes.pair]
    people, worker = np.unique(votes.annotator, return_inverse=True)

    def count(of: Array) -> Counter[int]:
        """Votes of one sort, by annotator."""
        return Counter(dict(zip(people.tolist(), np.bincount(worker[of], minlength=len(people)).tolist(), strict=True)))

    right, asked = count(known == votes.label), count(~np.isnan(known))
    left, sided = count(votes.left == 1), count(~np.isnan(votes.left))
    ties, compared = count(votes.label == 0.5), count(~np.isnan(votes.label))
    made = {}
    for one in found.judged:
        golden = gold.get(one, (0, 0))
        made[one] = Conduct(
            seconds=found.seconds.get(one),
            gold=(golden[0] + right[one], golden[1] + asked[one]),
            left=(left[one], sided[one]),
            ties=(ties[one], compared[one]),
            reliability=reliability.get(one),
        )
    return made


def _gold(session: Session) -> dict[int, tuple[int, int]]:
    """Gold questions of other kinds than comparisons: answered rightly, and answered, by annotator."""
    known = session.scalars(select(Task.id).where(Task.gold.is_not(None), Task.kind != "comparison")).all()
    if not known:
        return {}
    query = select(Judgement.annotator_id, Task.kind, Judgement.verdict, Task.gold, func.count()).join(Task)
    asked = query.where(stands(), Judgement.task_id.in_(known))
    counts: dict[int, tuple[int, int]] = {}
    for annotator, kind, verdict, gold, number in session.execute(asked.group_by(*query.selected_columns[:4])):
        right, all_ = counts.get(annotator, (0, 0))
        counts[annotator] = (right + number * is_right(kind, verdict, gold or ""), all_ + number)
    return counts


def _people(session: Session, found: Facts, conduct: Mapping[int, Conduct]) -> list[Person]:
    visits = Counter(session.scalars(select(Visit.annotator_id)))
    gone = select(Judgement.annotator_id).where(Judgement.withdrawn.is_not(None))
    withdrawn = Counter(session.scalars(gone))
    people = []
    for one in session.scalars(select(Annotator).order_by(Annotator.name)):
        own = conduct.get(one.id, Conduct())
        others = [each for number, each in conduct.items() if number != one.id]
        told = (found.judged.get(one.id, 0), found.skipped.get(one.id, 0), withdrawn[one.id], visits[one.id])
        people.append(Person(one.id, one.name, one.supervisor, *told, own, suspicions(own, others)))
    return people


def _weights(
    found: Facts, reliability: Mapping[int, float], suspected: Sequence[int], weighing: Weighing
) -> dict[int, float]:
    """How much each annotator's word counts; who shared nothing with others counts as the median of those who did."""
    if weighing == "all":
        return {}
    if weighing == "trusted":
        return dict.fromkeys(suspected, 0.0)
    middle = float(np.median([*reliability.values()])) if reliability else 1.0
    return {one: max(0.0, 2 * reliability.get(one, middle) - 1) for one in found.judged}


def _contests(found: Facts, weights: Mapping[int, float]) -> list[Contest]:
    """Win rates of the sources that were compared; several judgements of two answers are their weighted mean."""
    votes, pairs = found.votes, found.pairs
    if not len(votes.pair):
        return []
    ids, number = np.unique(votes.annotator, return_inverse=True)
    weight = np.array([weights.get(one, 1.0) for one in ids.tolist()])[number]
    total = np.bincount(votes.pair, weight, minlength=len(pairs.contest))
    label = np.bincount(votes.pair, weight * votes.label, minlength=len(pairs.contest))
    judged = total > 0
    mean = np.divide(label, total, where=judged, out=np.zeros_like(label))
    first = np.where(pairs.turned, 1 - mean, mean)
    longer = np.where(pairs.turned, -pairs.longer, pairs.longer)
    made = [
        _contest(names, first[own], longer[own])
        for number, names in enumerate(pairs.contests)
        if (own := judged & (pairs.contest == number)).any()
    ]
    return sorted(made, key=lambda each: (each.first, each.second))


def _contest(names: tuple[str, str], labels: Array, longer: Array) -> Contest:
    return Contest(*names, win_rate(labels), length_bias(longer, np.zeros_like(longer), labels))


def _score(one: Scores) -> ScoreOf:
    return ScoreOf(one.source, one.criterion, one.scale, interval(one.values), len(one.values))
