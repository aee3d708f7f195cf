"""Answers that are compared as text, and blocks of code in them."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

MATCH_S = 5.0
"""Seconds in which a pattern must be decided; what takes longer tries ways without number, such as `(a|aa)+$`."""
_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def exact_match(prompt: str, answer: str, target: Any, ignore_case: bool = False) -> float | None:
    """Whether an answer is the target, or one of several; runs of white space are one space, and none at the ends.

    Args:
        prompt: not looked at.
        answer: the policy's.
        target: a text, what has one (a number), or a list of them.
        ignore_case: whether `Yes` is `yes`.
    """
    if target is None:
        return None
    accepted = target if isinstance(target, list) else [target]
    return float(normalised(answer, ignore_case) in {normalised(str(each), ignore_case) for each in accepted})


def normalised(text: str, ignore_case: bool = False) -> str:
    """A text as it is compared: in Unicode's composed form, with single spaces."""
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    return spaced.casefold() if ignore_case else spaced


def matches(prompt: str, answer: str, pattern: str | None) -> float | None:
    """Whether a regular expression of Python's matches anywhere in an answer; `^` and `$` bind it to the ends.

    Raises:
        TimeoutError: it was not decided in time.
        ValueError: the pattern is none.
    """
    if pattern is None:
        return None
    from rlhf_dist.config.expressions import expression

    return float(expression(pattern).search(answer, timeout=MATCH_S) is not None)


def block_of(answer: str, *languages: str) -> str:
    """The last block between ``` of one of some languages, else the last without one, else the whole answer."""
    found: list[tuple[str, str]] = [(language.lower(), code) for language, code in _BLOCK.findall(answer)]
    for wanted in (languages, ("",)):
        if named := [code for language, code in found if language in wanted]:
            return named[-1]
    return answer
