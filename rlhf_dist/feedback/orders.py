"""Coins that fall alike on every visit: where a task comes in each one's row, and which answer they see on the left."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

PLACES = 2**31
"""A task's place by chance is below it."""


def place_of(digest: str) -> int:
    """A task's place by chance, the same for the same question."""
    return _number(digest) % PLACES


def probe(annotator_id: int, judged: int) -> int:
    """Where an annotator looks for the next task after so many: at a new place each time, so that no two have one order."""
    return _number(f"probe {annotator_id}/{judged}") % PLACES


def chance(*what: object) -> float:
    """A number from 0 to 1, the same for the same words."""
    return _number("/".join(map(str, what))) / 2**32


def turned(task_id: int, annotator_id: int) -> bool:
    """Whether this annotator sees the second answer of a pair on the left."""
    return bool(blake2b(f"{task_id}/{annotator_id}".encode(), digest_size=1).digest()[0] & 1)


def order_of(task_id: int, annotator_id: int, answers: int) -> tuple[int, ...]:
    """Places of a task's answers from left to right, as this annotator sees them."""
    if answers == 2:
        return (1, 0) if turned(task_id, annotator_id) else (0, 1)
    return tuple(sorted(range(answers), key=lambda place: _number(f"{task_id}/{annotator_id}/{place}")))


def as_text(order: Sequence[int]) -> str:
    """An order as `Judgement.order_shown` keeps it; up to ten answers."""
    return "".join(map(str, order))


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
