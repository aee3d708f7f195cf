"""Regular expressions of users: Python's syntax and meaning, in a matcher that can be stopped."""

from __future__ import annotations

import re
import warnings
from typing import Any

_BRACE = re.compile(r"\\N\{[^}]*\}|\\.|\{(?!\d+\}|\d*,\d*\})", re.DOTALL)
"""A brace that begins no repetition, or what else could hold one."""


def expression(pattern: str) -> Any:
    r"""A pattern of Python's `re`, compiled by `regex`, whose `search` takes a `timeout` in seconds.

    What `regex` reads otherwise is read as in `re`: a brace that repeats nothing is a brace, not `regex`'s fuzzy matching. `\w`
    is Unicode's word character, so it matches combining marks as well, and superscripts not.

    Raises:
        ValueError: it is no regular expression, or one that `re` itself means to read otherwise some day; says why.
    """
    import regex

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # "possible nested set", which `regex` takes for one
            re.compile(pattern)
        return regex.compile(_BRACE.sub(lambda found: "\\{" if found[0] == "{" else found[0], pattern))
    except (re.error, regex.error, FutureWarning) as error:
        raise ValueError(f"regular expressions; {pattern!r} is none: {error}") from None
