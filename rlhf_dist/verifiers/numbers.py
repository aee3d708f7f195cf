r"""Answers that are numbers: the last one, or what stands in the last `\boxed{}` or behind the last `####`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

LONGEST = 400
"""Characters of a number, and its largest exponent: beyond it is no answer, and to compute with it takes long."""
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![\w)\]}}])[-+−–])?(?:\\?[$€£]\s*)?
    (?:\\[dt]?frac\{{\s*(?P<over>[-+−]?\d+)\s*\}}\{{\s*(?P<under>\d+)\s*\}}
    |(?P<number>{_DIGITS})(?:[eE](?P<exponent>[-+]?\d+))?(?:\s*/\s*(?P<slash>\d+)(?!\d|\.\d))?)
    \s*(?P<percent>\\?%)?""",
    re.VERBOSE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


def numeric(prompt: str, answer: str, target: Any, tolerance: float = 1e-6) -> float | None:
    """Whether an answer's number is the target's: 1,000 is 1000, 0.5 is 1/2 is 50%; nothing is evaluated.

    Args:
        prompt: not looked at.
        answer: the policy's.
        target: a number, or a text that is read as answers are.
        tolerance: largest difference, as a share of the target.

    Raises:
        ValueError: the target has no number.
    """
    if target is None:
        return None
    right = number_in(str(target))
    if right is None:
        raise ValueError(f"target is {str(target)[:100]!r}; expected a number")
    found = number_in(answer)
    return float(found is not None and abs(found - right) <= Fraction(tolerance) * abs(right))


def number_in(text: str) -> Fraction | None:
    """The number that a text comes to; None: it has none."""
    found = [each for each in _NUMBER.finditer(_final(text)) if len(each[0]) <= LONGEST]
    return _value(found[-1]) if found else None


def _final(text: str) -> str:
    r"""The part of a text that is its answer: in the last `\boxed{}`, or behind the last `####`, if it has one."""
    boxes = [*_BOXED.finditer(text)]
    if boxes:
        return _braced(text[boxes[-1].end() :])
    return text.rpartition("####")[2]


def _braced(text: str) -> str:
    """Up to the brace that closes one that was opened before."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:place]
    return text


def _value(found: re.Match[str]) -> Fraction | None:
    over, under = found["over"] or found["number"], found["under"] or found["slash"] or "1"
    exponent = int(found["exponent"] or 0) if len(found["exponent"] or "") <= len(str(LONGEST)) + 1 else LONGEST + 1
    if abs(exponent) > LONGEST or not int(under):
        return None
    size = Fraction(re.sub(r",|\{,\}|\\,", "", over).replace("−", "-")) * Fraction(10) ** exponent / int(under)
    return size * (-1 if found["sign"] in ("-", "−", "–") else 1) / (100 if found["percent"] else 1)
