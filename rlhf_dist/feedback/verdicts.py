"""What can be said of answers, by the sides that people saw, by the task's own, and as labels.

A comparison's verdict is one of `COMPARISONS`; a ranking's the places of its answers, best first, as in `2>0=1`; a score's its
number; a comment's `said`. `skip` is no judgement.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from rlhf_dist.errors import DataError

COMPARISONS = ("a_much", "a", "tie", "both_bad", "b", "b_much")
LABELS = {"a_much": 1.0, "a": 1.0, "tie": 0.5, "both_bad": 0.5, "b": 0.0, "b_much": 0.0}
"""What a comparison's verdict says of P(a is better)."""
MARGINS = {"a_much": 1.0, "b_much": 1.0}
"""By how much the better one is better; 0 of the others."""
SKIP, SAID = "skip", "said"
SCORES = (1, 2, 3, 4, 5)
MIRROR = {"a_much": "b_much", "a": "b", "b": "a", "b_much": "a_much"}
LETTERS = "abcdefghij"
"""Names of answers; so there are at most ten."""


def by_own_sides(verdict: str, order: Sequence[int]) -> str:
    """A comparison's verdict by the task's own sides, from that by the sides that were shown; or the other way round."""
    return MIRROR.get(verdict, verdict) if tuple(order) == (1, 0) else verdict


def ranking(ranks: Sequence[int], order: Sequence[int]) -> str:
    """A ranking's verdict.

    Args:
        ranks: of each answer from left to right, 1 for the best; equal ones are as good.
        order: places of the answers from left to right.
    """
    groups = [
        "=".join(str(place) for place, own in sorted(zip(order, ranks, strict=True)) if own == rank)
        for rank in sorted(set(ranks))
    ]
    return ">".join(groups)


def ranked(verdict: str) -> list[list[int]]:
    """Places of a ranking's answers, best first, equal ones together."""
    return [[int(place) for place in group.split("=")] for group in verdict.split(">")]


def pairs(kind: str, verdict: str) -> list[tuple[int, int, float]]:
    """What a comparison or ranking says of each two answers: their places, the lower first, and P(the first is better)."""
    if kind == "comparison":
        return [(0, 1, LABELS[verdict])]
    rank = {place: number for number, group in enumerate(ranked(verdict)) for place in group}
    return [(a, b, (1 + (rank[a] < rank[b]) - (rank[a] > rank[b])) / 2) for a, b in combinations(sorted(rank), 2)]


def checked_gold(where: str, kind: str, gold: object, answers: int) -> str | None:
    """What is known to be right, as the store keeps it: `a`, `b`; a ranking such as `b>a>c`, or its best; a score.

    Raises:
        DataError: it is none of these; begins with `where`.
    """
    if gold is None:
        return None
    text = str(int(gold)) if isinstance(gold, float) and gold.is_integer() else str(gold)
    letters = LETTERS[:answers]
    if kind == "ranking":
        named = text.replace("=", ">").split(">")
        right = len(set(named)) == len(named) and all(len(each) == 1 and each in letters for each in named)
        allowed = f"the best of {', '.join(letters)}, or all in order, as in {'>'.join(letters)}"
        right = right and len(named) in (1, answers)
    else:
        known = ("a", "b") if kind == "comparison" else tuple(map(str, SCORES)) if kind == "score" else ()
        right, allowed = text in known, ", ".join(known) or "none"
    if not right:
        raise DataError(f"{where}: gold is {gold!r}; expected {allowed}")
    return text


def is_right(kind: str, verdict: str, gold: str) -> bool:
    """Whether a question whose answer is known was answered so; a score may be one step off, a ranking may turn no pair round."""
    if kind == "score":
        return abs(int(verdict) - int(gold)) <= 1
    if kind == "comparison":
        return verdict.partition("_")[0] == gold and verdict != "both_bad"
    wanted = [[LETTERS.index(each) for each in group.split("=")] for group in gold.split(">")]
    rank = {place: number for number, group in enumerate(ranked(verdict)) for place in group}
    if len(wanted) == 1:
        wanted.append([place for place in rank if place not in wanted[0]])
    return all(
        rank[better] < rank[worse]
        for number, group in enumerate(wanted)
        for better in group
        for later in wanted[number + 1 :]
        for worse in later
    )
