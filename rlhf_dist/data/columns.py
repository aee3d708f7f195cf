"""What is said of a row whose columns are not the expected ones: what was found, what was expected, what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rlhf_dist.errors import DataError

MEANT = {
    "prompt": ("instruction", "question", "query", "input", "problem", "text"),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "chat"),
    "completion": ("response", "output", "answer", "target", "solution"),
    "answer": ("completion", "response", "output"),
    "answers": ("responses", "completions", "outputs", "ranking"),
    "chosen": ("accepted", "preferred", "better", "win", "positive"),
    "rejected": ("dispreferred", "worse", "lose", "negative"),
    "score": ("rating", "label", "reward"),
    "comment": ("feedback", "critique", "remark"),
}
"""What other tools and data sets call a column."""


def missing(where: str, row: Mapping[str, Any], *names: str, expected: str = "") -> DataError:
    """The error of a row without the columns of some names; `expected` says how they belong together."""
    told = expected or ", ".join(f"`{name}`" for name in names)
    return DataError(f"{where}: columns are {sorted(row)}; expected {told}{meant(row, *names)}")


def meant(row: Mapping[str, Any], *names: str) -> str:
    """A sentence about columns that were probably meant by names that a row lacks; empty if there are none."""
    near: dict[str, str] = {}
    for name in names:
        found = None if name in row else _near(name, row, taken=(*names, *near))
        if found is not None:
            near[found] = name
    pairs = ", ".join(f"`{found}` for `{name}`" for found, name in near.items())
    return f". Did you mean {pairs}? Rename {'them' if len(near) > 1 else 'it'}" if near else ""


def _near(name: str, row: Mapping[str, Any], *, taken: tuple[str, ...]) -> str | None:
    others = [each for each in row if each not in taken]
    by_case = {each.strip().lower(): each for each in others}
    known = next((by_case[each] for each in (name, *MEANT.get(name, ())) if each in by_case), None)
    if known is not None:
        return known
    close = difflib.get_close_matches(name, [*by_case], n=1, cutoff=0.7)
    return by_case[close[0]] if close else None
