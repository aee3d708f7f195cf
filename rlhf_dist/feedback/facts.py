"""What a store holds, as arrays: read in a few queries without any text that people read, a hundred thousand judgements at once.

The store packs each judgement into one whole number and joins them to one text, which numpy reads many times as fast as rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, Integer, String, case, cast, func, literal, select
from sqlalchemy.orm import Session

from rlhf_dist.feedback.database import Judgement, Rating, Task
from rlhf_dist.feedback.verdicts import COMPARISONS, LABELS, SCORES, SKIP, pairs

Array = np.ndarray[Any, Any]
OTHER, SKIPPED = len(COMPARISONS), len(COMPARISONS) + 1
"""Codes of a verdict that is none of a comparison's, and of none at all."""
CODES = SKIPPED + 1
LABEL = np.array([*(LABELS[name] for name in COMPARISONS), np.nan, np.nan])
SIDES = 3
"""Codes of the order that was seen: 0 as the task has it, 1 turned, 2 of more or fewer than two answers."""
TENTHS = 4096
"""Of a second; the last says that the time is not known, and stands for all longer ones, which no median tells apart."""


@dataclass(frozen=True)
class Votes:
    """Comparisons that stand, and the pairs of rankings, one entry each; skips are none."""

    pair: Array
    """Number of the two answers compared, the same for everybody; dense, from 0."""
    annotator: Array
    """Id."""
    label: Array
    """P(the first answer is better): 0, 0.5 or 1."""
    left: Array
    """1 where the answer on the left was chosen, 0 the one on the right, NaN where neither was or it is not known."""


@dataclass(frozen=True)
class Pairs:
    """Of each two answers that may be compared, by `Votes.pair`."""

    contest: Array
    """Number of the two who gave them; -1 of a gold question, and of two answers of one source."""
    turned: Array
    """Whether the first answer is the contest's second source's."""
    longer: Array
    """Characters of the first answer less those of the second."""
    contests: list[tuple[str, str]]
    known: Array
    """1 where the first answer is known to be better, 0 the second, NaN where it is not known."""


@dataclass(frozen=True)
class Facts:
    """What stands in a store."""

    votes: Votes
    pairs: Pairs
    judged: dict[int, int]
    """Judgements by annotator."""
    skipped: dict[int, int]
    """Skips likewise."""
    seconds: dict[int, float]
    """Their median by annotator, breaks left out."""


@dataclass(frozen=True)
class Scores:
    """What was said of one source's answers to one question on a scale."""

    source: str
    criterion: str
    """Empty: the task's own question."""
    scale: tuple[float, float]
    values: list[float]
    """A task's mean each."""


def facts(session: Session, tasks: Tasks | None = None) -> Facts:
    """Read all judgements that stand.

    Args:
        session: of the store.
        tasks: of `compared`, as long as there are no others; None: they are read, too.
    """
    ids, pairs_ = tasks or compared(session)
    task, annotator, code, side, tenths = _judgements(session)
    judged = code != SKIPPED
    known = judged & (tenths < TENTHS - 1)
    pace = {int(one): float(np.median(tenths[known & (annotator == one)])) / 10 for one in np.unique(annotator[known])}
    own = code < OTHER
    label, seen = LABEL[code[own]], side[own]
    left = np.where((label == 0.5) | (seen == 2), np.nan, np.abs(label - seen))
    ranked, more = _ranked(session, len(ids))
    votes = Votes(
        pair=np.concatenate([np.searchsorted(ids, task[own]), ranked[:, 0].astype(int)]),
        annotator=np.concatenate([annotator[own], ranked[:, 1].astype(int)]),
        label=np.concatenate([label, ranked[:, 2]]),
        left=np.concatenate([left, np.full(len(ranked), np.nan)]),
    )
    return Facts(votes, _with(pairs_, more), _counted(annotator[judged]), _counted(annotator[~judged]), pace)


def _counted(annotator: Array) -> dict[int, int]:
    return dict(zip(*(each.tolist() for each in np.unique(annotator, return_counts=True)), strict=True))


def stands() -> Any:
    """What counts: neither withdrawn nor a skip."""
    return Judgement.withdrawn.is_(None) & (Judgement.verdict != SKIP)


def _judgements(session: Session) -> list[Array]:
    """Task, annotator, verdict, side and tenths of a second of each."""
    people = (session.scalar(select(func.max(Judgement.annotator_id))) or 0) + 1
    codes = {SKIP: SKIPPED, **{name: number for number, name in enumerate(COMPARISONS)}}
    code = case(codes, value=Judgement.verdict, else_=OTHER)
    side = case({"01": 0, "10": 1}, value=Judgement.order_shown, else_=2)
    tenths = case((Judgement.active < (TENTHS - 1) / 10, cast(Judgement.active * 10, Integer)), else_=TENTHS - 1)
    sizes = (people, CODES, SIDES, TENTHS + 1)  # a rounded time may reach the size
    packed: ColumnElement[int] = cast(Judgement.task_id, BigInteger)
    for size, each in zip(sizes, (Judgement.annotator_id, code, side, tenths), strict=True):
        packed = packed * size + each
    there = Judgement.withdrawn.is_(None)
    numbers = _read(session.scalar(select(func.aggregate_strings(cast(packed, String), ",")).where(there)), np.int64)
    found = []
    for size in reversed(sizes):
        numbers, rest = np.divmod(numbers, size)
        found.append(rest)
    return [numbers, *reversed(found)]


Tasks = tuple[Array, Pairs]
"""Ids, ascending, and what is known of each."""


def compared(session: Session) -> Tasks:
    """Tasks of two answers, in the order of their ids; those of the same sources come out of the store in one text."""
    sizes = func.replace(func.replace(Task.lengths, "[", ""), "]", "")
    packed = func.aggregate_strings(cast(Task.id, String) + "," + sizes, ",")
    query = select(Task.sources, Task.gold, packed).where(Task.kind == "comparison").group_by(Task.sources, Task.gold)
    contests: dict[tuple[str, str], int] = {}
    tables = [np.empty((0, 5))]
    for sources, gold, text in session.execute(query):
        table = _read(text, float).reshape(-1, 3)
        first, second = json.loads(sources)
        told = [
            _contest(contests, first, second, gold is not None),
            first > second,
            {"a": 1, "b": 0}.get(gold or "", np.nan),
        ]
        tables.append(np.column_stack([table[:, 0], table[:, 1] - table[:, 2], np.tile(told, (len(table), 1))]))
    whole = np.concatenate(tables)
    ids, longer, number, turned, known = whole[np.argsort(whole[:, 0])].T
    return ids, Pairs(number.astype(int), turned.astype(bool), longer, [*contests], known)


def _contest(contests: dict[tuple[str, str], int], first: str, second: str, gold: bool) -> int:
    """Number of two sources, a new one if need be."""
    if first == second or gold:
        return -1
    return contests.setdefault((first, second) if first < second else (second, first), len(contests))


Ranked = tuple[str, str, bool, float]
"""Both sources, whether it is a gold question's, and by how many characters the first is longer."""


def _ranked(session: Session, first: int) -> tuple[Array, list[Ranked]]:
    """Each two answers of rankings as comparisons, their pairs numbered from `first`."""
    found = session.execute(
        select(Judgement.task_id, Judgement.annotator_id, Judgement.verdict, Task.sources, Task.lengths, Task.gold)
        .join(Task)
        .where(stands(), Task.kind == "ranking")
    )
    numbers: dict[tuple[int, int, int], int] = {}
    rows, more = [], []
    for task, annotator, verdict, sources, lengths, gold in found:
        for a, b, label in pairs("ranking", verdict):
            if (task, a, b) not in numbers:
                numbers[task, a, b] = first + len(numbers)
                named, sizes = json.loads(sources), json.loads(lengths)
                more.append((named[a], named[b], gold is not None, float(sizes[a] - sizes[b])))
            rows.append((numbers[task, a, b], annotator, label))
    return np.array(rows, dtype=float).reshape(-1, 3), more


def _with(known: Pairs, more: Sequence[Ranked]) -> Pairs:
    contests = {names: number for number, names in enumerate(known.contests)}
    number = [_contest(contests, first, second, gold) for first, second, gold, _ in more]
    return Pairs(
        np.concatenate([known.contest, np.array(number, dtype=int)]),
        np.concatenate([known.turned, np.array([row[0] > row[1] for row in more], dtype=bool)]),
        np.concatenate([known.longer, np.array([row[3] for row in more], dtype=float)]),
        [*contests],
        np.concatenate([known.known, np.full(len(more), np.nan)]),
    )


def scores(session: Session) -> list[Scores]:
    """Scores by source and question, gold questions left out."""
    own = select(Task.sources, literal(""), literal(0), literal(min(SCORES)), literal(max(SCORES)))
    asked = select(Task.sources, Rating.criterion, Rating.place, Rating.low, Rating.high)
    found: dict[tuple[str, str, float, float], list[Array]] = {}
    for query, value in (
        (own.select_from(Judgement).join(Task).where(Task.kind == "score"), Judgement.verdict),
        (
            asked.select_from(Judgement)
            .join(Task)
            .join(Rating)
            .where(Rating.kind == "score", Rating.place.is_not(None)),
            Rating.value,
        ),
    ):
        for (sources, criterion, place, low, high), table in _by_group(session, query, value):
            found.setdefault((json.loads(sources)[place], criterion, low, high), []).append(table)
    return [
        Scores(source, criterion, (low, high), _means(np.concatenate(tables)))
        for (source, criterion, low, high), tables in sorted(found.items())
    ]


def _by_group(session: Session, query: Any, value: Any) -> Iterator[tuple[tuple[Any, ...], Array]]:
    """Task and value of all that a query has, by its other columns."""
    packed = func.aggregate_strings(cast(Judgement.task_id, String) + "," + value, ",")
    keys = [column for column in query.selected_columns if not hasattr(column, "effective_value")]
    for *key, text in session.execute(query.add_columns(packed).where(stands(), Task.gold.is_(None)).group_by(*keys)):
        yield tuple(key), _read(text, float).reshape(-1, 2)


def _means(table: Array) -> list[float]:
    """Mean value of each task."""
    _, number = np.unique(table[:, 0], return_inverse=True)
    means: list[float] = (np.bincount(number, table[:, 1]) / np.bincount(number)).tolist()
    return means


def _read(text: str | None, dtype: Any) -> Array:
    return np.fromstring(text or "", dtype=dtype, sep=",")
