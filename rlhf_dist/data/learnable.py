"""Which rows of a feedback file are learnt from, and what is said of the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from rlhf_dist.config import Feedback
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown

KINDS = ("comparisons", "rankings", "scores", "comments")
UNTAUGHT = ("choices", "skips")
"""Kinds of rows from which nothing is learnt."""
LOG = logging.getLogger(__name__)


class Learnable:
    """Reads of each row of a file whether it is learnt from and as what, and counts those that are left out, by reason."""

    def __init__(self, file: Feedback, kinds: Collection[str]) -> None:
        """Take a file's settings, and the kinds that the stage learns from."""
        self._file, self._kinds = file, kinds
        self._rows = self._gold = self._main = 0
        self._others: Counter[str] = Counter()
        self._criteria: Counter[str] = Counter()

    def kind(self, where: str, row: Mapping[str, Any]) -> str | None:
        """As what a row is learnt from; None: it is left out.

        Raises:
            DataError: its kind is none; names file and line.
        """
        self._rows += 1
        kind = self._told(where, row)
        if kind in UNTAUGHT:
            self._others[kind] += 1
        elif row.get("gold") is not None:
            self._gold += 1
        elif self._file.kind not in ("auto", kind) or kind not in self._kinds:
            self._others[kind] += 1
        elif row.get("criterion") != self._file.criterion:
            criterion = row.get("criterion")
            self._main += criterion is None
            self._criteria.update([] if criterion is None else [str(criterion)])
        else:
            return kind
        return None

    def close(self, encoder: Encoder | None = None) -> None:
        """Say in one line what was left out.

        Raises:
            DataError: nothing is left; says what there is, and what would read it.
        """
        told = [(self._gold, "of gold questions"), *((count, kind) for kind, count in self._others.items())]
        told += [
            (self._main, "of the main question"),
            (self._criteria.total(), f"of criteria {', '.join(self._criteria)}"),
        ]
        reasons = ", ".join(f"{count:,} {reason}" for count, reason in told if count)
        if not reasons:
            return
        if self._rows == sum(count for count, _ in told):
            raise DataError(f"{self._file.path}: nothing to learn from: {reasons}; expected {self._expected()}")
        note = f"{self._file.path}: left out: {reasons}"
        LOG.warning(note)
        if encoder is not None:
            encoder.tell(note)

    def _told(self, where: str, row: Mapping[str, Any]) -> str:
        own, asked = row.get("kind"), self._file.kind
        if isinstance(own, str) and own in (*KINDS, *UNTAUGHT):
            return own
        if asked != "auto":
            return asked
        if own is not None:
            known = ", ".join((*KINDS, *UNTAUGHT))
            hint = "If the column says something else, set `kind` for this file"
            raise DataError(f"{where}: kind is {shown(own)}; expected one of {known}. {hint}")
        return "scores" if is_unpaired(row) else "comparisons"

    def _expected(self) -> str:
        """What there would have to be, and the setting that reads what there is."""
        wanted = [kind for kind in self._kinds if self._file.kind in ("auto", kind)]
        of = "the main question" if self._file.criterion is None else f"the criterion {self._file.criterion!r}"
        unread = [kind for kind in self._others if kind in self._kinds]
        hints = [f"kind: auto, or {' or '.join(unread)}"] if unread else []
        hints += [f"criterion: one of {', '.join(self._criteria)}"] if self._criteria else []
        hints += ["criterion: null"] if self._main else []
        hints += (
            ["comment_judge"] if "comments" in self._others and {*self._kinds} > {"comparisons"} and not unread else []
        )
        return f"{' or '.join(wanted) or 'other kinds'} of {of}" + (f". Set {', or '.join(hints)}" if hints else "")


def is_unpaired(row: Mapping[str, Any]) -> bool:
    """Whether a row is TRL's unpaired preference: one completion, and whether it is good."""
    return "completion" in row and "label" in row and "chosen" not in row
