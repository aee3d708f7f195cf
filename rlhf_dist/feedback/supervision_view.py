"""The supervisor's view for a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from rlhf_dist.feedback.supervision import Overview


def show_overview(console: Console, seen: Overview) -> None:
    """Print progress, annotators, agreement and win rates."""
    console.print(f"{seen.judgements} judgements; {seen.finished} of {seen.tasks} tasks finished", highlight=False)
    if seen.agreement is not None and not math.isnan(seen.agreement.alpha):
        console.print(
            f"Krippendorff's alpha {seen.agreement.alpha:.2f} on {seen.agreement.shared} shared tasks", highlight=False
        )
    people = Table("annotator", "judged", "skipped", "seconds each", "gold right", "reliability", "")
    for one in seen.people:
        people.add_row(
            one.name,
            str(one.judged),
            str(one.skipped),
            "–" if one.seconds is None else f"{one.seconds:.1f}",
            f"{one.gold[0]} of {one.gold[1]}" if one.gold[1] else "–",
            f"{one.reliability.reliability:.2f}" if one.reliability else "–",
            "suspected careless" if one.reliability and one.reliability.careless else "",
        )
    console.print(people, markup=False)
    if seen.contests:
        contests = Table("policy", "against", "win rate", "95% interval", "wins, ties, losses")
        for first, second, won in seen.contests:
            contests.add_row(
                first,
                second,
                f"{won.rate.mean:.1%}",
                f"{won.rate.low:.1%} to {won.rate.high:.1%}",
                f"{won.wins}, {won.ties}, {won.losses}",
            )
        console.print(contests, markup=False)
