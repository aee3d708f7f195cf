"""Which words of two answers differ, for highlighting, in work that is bounded whatever the answers are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import Match, SequenceMatcher
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

Piece = tuple[str, bool]
"""Text, and whether the other answer lacks it."""

LONGEST = 30_000
"""Characters of both answers beyond which they are not compared."""
STEPS = 300_000
"""Pairs of equal parts that one comparison may look at, at about 50 ns each."""
ALIKE = 0.3
"""Share of the letters that both have, below which nearly all would be marked, which tells nothing."""
LITTLE = "These answers have little in common."
LONG = "These answers are too long, or too repetitive, to be compared."
_PARTS = {
    "words and blanks": re.compile(r"\s+|\w+|[^\w\s]"),
    "words": re.compile(r"(?:\w+|[^\w\s])\s*|\s+"),
    "sentences": re.compile(r"[^\n.!?。]+[\n.!?。]*|[\n.!?。]+"),
}
"""What is compared, from what shows most to what takes least: of all equal parts most are blanks."""


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; joined, the pieces are the texts. None is marked where `why_unmarked` says why."""
    compared = _compared(first, second)
    return [*compared.left], [*compared.right]


def why_unmarked(first: str, second: str) -> str:
    """A sentence for people where no differences are marked though there are some; else empty."""
    return _compared(first, second).note


class _Compared(NamedTuple):
    left: tuple[Piece, ...]
    right: tuple[Piece, ...]
    note: str = ""


class _TooMuch(Exception):
    """More work than a comparison may take."""


class _Bounded(SequenceMatcher[str]):
    """difflib's matcher, which gives up after `STEPS`: it takes cubic time on texts that repeat themselves.

    The steps of one search are known before it: for each part of one text, the places where the other has it.
    """

    def __init__(self, a: Sequence[str], b: Sequence[str]) -> None:
        super().__init__(None, a, b, autojunk=False)
        self._left = STEPS
        places: dict[str, list[int]] = self.b2j  # type: ignore[attr-defined]
        self._until = [*accumulate((1 + len(places.get(part, ())) for part in a), initial=0)]

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        """The longest run that both have, if it can be looked for."""
        self._left -= self._until[-1 if ahi is None else ahi] - self._until[alo]
        if self._left < 0:
            raise _TooMuch
        return super().find_longest_match(alo, ahi, blo, bhi)


@lru_cache(maxsize=1024)
def _compared(first: str, second: str) -> _Compared:
    if len(first) + len(second) <= LONGEST:
        for name, parts in _PARTS.items():
            a, b = parts.findall(first), parts.findall(second)
            try:
                left, right = _pieces(a, b, _Bounded(a, b).get_opcodes())
            except _TooMuch:
                continue
            if _shared([*left, *right]) >= ALIKE:
                return _Compared(left, right)
            if name != "sentences":
                return _unmarked(first, second, LITTLE)
    return _unmarked(first, second, LONG)


def _unmarked(first: str, second: str, note: str) -> _Compared:
    return _Compared(((first, False),) if first else (), ((second, False),) if second else (), note)


def _pieces(
    a: Sequence[str], b: Sequence[str], changes: Iterable[tuple[str, int, int, int, int]]
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, a0, a1, b0, b1 in changes:
        differs = kind != "equal"
        if a1 > a0:
            left.append(("".join(a[a0:a1]), differs))
        if b1 > b0:
            right.append(("".join(b[b0:b1]), differs))
    return tuple(left), tuple(right)


def _shared(pieces: Sequence[Piece]) -> float:
    """Of all characters but blanks, the share that the other answer has, too; 1 of nothing."""
    sizes = [(len("".join(text.split())), differs) for text, differs in pieces]
    total = sum(size for size, _ in sizes)
    return sum(size for size, differs in sizes if not differs) / total if total else 1.0
