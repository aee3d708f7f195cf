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
OTHER = len(COMPARISONS)
"""Code of a verdict that is none of a comparison's."""
CODES = OTHER + 1
LABEL = np.array([*(LABELS[name] for name in COMPARISONS), np.nan])
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


@dataclass(frozen=True)
class Facts:
    """What stands in a store."""

    votes: Votes
    pairs: Pairs
    judged: dict[int, int]
    """Judgements by annotator."""
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


def facts(session: Session) -> Facts:
    """Read all judgements that stand."""
    task, annotator, code, side, tenths = _judgements(session)
    known = tenths < TENTHS - 1
    pace = {int(one): float(np.median(tenths[known & (annotator == one)])) / 10 for one in np.unique(annotator[known])}
    counts = np.unique(annotator, return_counts=True)
    ids, pairs_ = _compared(session)
    compared = code != OTHER
    number = np.searchsorted(ids, task[compared])
    label, seen = LABEL[code[compared]], side[compared]
    left = np.where((label == 0.5) | (seen == 2), np.nan, np.abs(label - seen))
    ranked, more = _ranked(session, len(ids))
    votes = Votes(
        pair=np.concatenate([number, ranked[:, 0].astype(int)]),
        annotator=np.concatenate([annotator[compared], ranked[:, 1].astype(int)]),
        label=np.concatenate([label, ranked[:, 2]]),
        left=np.concatenate([left, np.full(len(ranked), np.nan)]),
    )
    return Facts(votes, _with(pairs_, more), dict(zip(*(each.tolist() for each in counts), strict=True)), pace)


def stands() -> Any:
    """What counts: neither withdrawn nor a skip."""
    return Judgement.withdrawn.is_(None) & (Judgement.verdict != SKIP)


def _judgements(session: Session) -> list[Array]:
    """Task, annotator, verdict, side and tenths of a second of each."""
    people = (session.scalar(select(func.max(Judgement.annotator_id))) or 0) + 1
    code = case({name: number for number, name in enumerate(COMPARISONS)}, value=Judgement.verdict, else_=OTHER)
    side = case({"01": 0, "10": 1}, value=Judgement.order_shown, else_=2)
    tenths = case((Judgement.active < (TENTHS - 1) / 10, cast(Judgement.active * 10, Integer)), else_=TENTHS - 1)
    sizes = (people, CODES, SIDES, TENTHS + 1)  # a rounded time may reach the size
    packed: ColumnElement[int] = cast(Judgement.task_id, BigInteger)
    for size, each in zip(sizes, (Judgement.annotator_id, code, side, tenths), strict=True):
        packed = packed * size + each
    numbers = _read(session.scalar(select(func.aggregate_strings(cast(packed, String), ",")).where(stands())), np.int64)
    found = []
    for size in reversed(sizes):
        numbers, rest = np.divmod(numbers, size)
        found.append(rest)
    return [numbers, *reversed(found)]


def _compared(session: Session) -> tuple[Array, Pairs]:
    """Tasks of two answers, in the order of their ids; those of the same sources come out of the store in one text."""
    sizes = func.replace(func.replace(Task.lengths, "[", ""), "]", "")
    packed = func.aggregate_strings(cast(Task.id, String) + "," + sizes, ",")
    golden = Task.gold.is_not(None)
    query = select(Task.sources, golden, packed).where(Task.kind == "comparison").group_by(Task.sources, golden)
    contests: dict[tuple[str, str], int] = {}
    tables = [np.empty((0, 4))]
    for sources, gold, text in session.execute(query):
        table = _read(text, float).reshape(-1, 3)
        first, second = json.loads(sources)
        number = _contest(contests, first, second, gold)
        told = np.tile([number, first > second], (len(table), 1))
        tables.append(np.column_stack([table[:, 0], told, table[:, 1] - table[:, 2]]))
    whole = np.concatenate(tables)
    whole = whole[np.argsort(whole[:, 0])]
    return whole[:, 0], Pairs(whole[:, 1].astype(int), whole[:, 2].astype(bool), whole[:, 3], [*contests])


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
