"""Which words of two answers differ, for highlighting."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

Piece = tuple[str, bool]
"""Text, and whether the other answer lacks it."""

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 20_000
"""Characters beyond which answers are shown without highlighting: the comparison takes quadratic time."""


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; joined, the pieces are the texts."""
    if len(first) + len(second) > LONGEST:
        return [(first, False)], [(second, False)]
    a, b = _WORDS.findall(first), _WORDS.findall(second)
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        differs = kind != "equal"
        if a1 > a0:
            left.append(("".join(a[a0:a1]), differs))
        if b1 > b0:
            right.append(("".join(b[b0:b1]), differs))
    return left, right
