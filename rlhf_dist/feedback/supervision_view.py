"""The supervisor's view for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from rlhf_dist.evaluation.intervals import Interval
from rlhf_dist.feedback.supervision import WEIGHINGS, Contest, Overview, Person, ScoreOf


def show_overview(console: Console, seen: Overview) -> None:
    """Print progress, annotators, agreement, win rates and scores."""
    console.print(f"{seen.judgements} judgements; {seen.finished} of {seen.tasks} tasks finished", highlight=False)
    if seen.only_skipped:
        console.print(f"{seen.only_skipped} tasks were skipped by all who saw them", highlight=False)
    if seen.agreement is not None and not math.isnan(seen.agreement.alpha):
        console.print(
            f"Krippendorff's alpha {seen.agreement.alpha:.2f} on {seen.agreement.shared} shared comparisons",
            highlight=False,
        )
    _table(
        console,
        ("annotator", "judged", "skipped", "seconds", "gold", "reliable", "left", "ties"),
        map(_person, seen.people),
    )
    for one in seen.people:
        for reason in one.suspicions:
            console.print(f"{one.name} is suspected: {reason}", markup=False, highlight=False)
    if seen.contests:
        head = ("policy", "against", "win rate", "95% interval", "won, tied, lost", "at equal length", "longer wins")
        _table(console, head, map(_contest, seen.contests))
        out = f"; left out: {', '.join(seen.left_out)}" if seen.left_out else ""
        console.print(f"Win rates: {WEIGHINGS[seen.weighing]}{out}", markup=False, highlight=False)
    if seen.scores:
        _table(console, ("policy", "question", "mean", "95% interval", "scale", "answers"), map(_score, seen.scores))


def _table(console: Console, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _person(one: Person) -> tuple[str, ...]:
    conduct = one.conduct
    return (
        one.name,
        str(one.judged),
        str(one.skipped),
        "–" if conduct.seconds is None else f"{conduct.seconds:.1f}",
        _of(conduct.gold),
        "–" if conduct.reliability is None else f"{conduct.reliability:.2f}",
        _of(conduct.left),
        _of(conduct.ties),
    )


def _of(counted: tuple[int, int]) -> str:
    return f"{counted[0]}/{counted[1]}" if counted[1] else "–"


def _contest(one: Contest) -> tuple[str, ...]:
    won, length = one.won, one.length
    return (
        one.first,
        one.second,
        f"{won.rate.mean:.1%}",
        _between(won.rate, "{:.1%}") + ("" if won.decided else " (open)"),
        f"{won.wins}, {won.ties}, {won.losses}",
        _share(length.controlled),
        _share(length.longer_wins),
    )


def _share(one: Interval) -> str:
    return "–" if math.isnan(one.mean) else f"{one.mean:.1%}"


def _score(one: ScoreOf) -> tuple[str, ...]:
    scale = f"{one.scale[0]:g} to {one.scale[1]:g}"
    return (
        one.source or "–",
        one.criterion or "how good",
        f"{one.mean.mean:.2f}",
        _between(one.mean, "{:.2f}"),
        scale,
        str(one.tasks),
    )


def _between(one: Interval, form: str) -> str:
    return f"{form.format(one.low)} to {form.format(one.high)}"
