"""Rows with more tokens than there is room for: counted over the whole file, then refused, truncated or left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from rlhf_dist.config import TooLong
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import DataError

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class Lengths:
    """What becomes of long rows, and how many there were."""

    def __init__(self, most: int, policy: TooLong, *, what: str, key: str) -> None:
        """Take the limit, the policy, how messages begin, and the section that has both settings."""
        self._most, self._policy, self._what = most, policy, what
        self._section = f"{key}." if key else ""
        self._rows = self._long = self._lost = 0
        self._first = ("", 0)

    def fit(self, where: str, length: int, row: T, cut: Callable[[], T | None]) -> T | None:
        """The row if it is short enough, else what the policy makes of it; None: it is left out.

        Args:
            where: file and line.
            length: of the row, in tokens.
            row: what is long or not.
            cut: makes it short enough, or gives None where nothing is left to learn from it.
        """
        self._rows += 1
        if length <= self._most:
            return row
        self._long += 1
        if self._long == 1:
            self._first = where, length
        made = cut() if self._policy == "truncate" else None
        self._lost += made is None
        return made

    def close(self, path: str, encoder: Encoder | None = None) -> None:
        """Say what became of the file's rows.

        Raises:
            DataError: long ones are refused, or none is left; names the first, and counts them all.
        """
        if not self._long:
            return
        where, found = self._first
        others = f"{self._long:,} of {self._rows:,} rows have more than {self._most:,} tokens"
        if self._policy == "refuse":
            raise DataError(
                f"{where}: {self._what} {found:,} tokens; expected at most {self._most} ({self._section}max_tokens). {others}. "
                f"Raise the limit, or set {self._section}too_long to truncate or leave_out"
            )
        if self._lost == self._rows:
            raise DataError(f"{path}: {others}, so that none is left; expected some. Raise {self._section}max_tokens")
        done = [
            f"{count:,} {how}"
            for count, how in ((self._long - self._lost, "truncated"), (self._lost, "left out"))
            if count
        ]
        note = f"{path}: {others}: {' and '.join(done)} ({self._section}too_long)"
        LOG.warning(note)
        if encoder is not None:
            encoder.tell(note)
