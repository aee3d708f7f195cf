"""Checkpoints that take their names while the next steps are done: what changes is copied at once, and written behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.learner.group import LearnerGroup


class _Abandoned(Exception):
    """Ends what is not whole."""


class Behind:
    """One checkpoint at a time is on its way; the next waits for it, so that no rank ever holds copies for two.

    Whatever fails, in a rank or here, ends whatever is waited for next; then, as when the block ends by an error, nothing of the
    checkpoint is left. A block that ends well ends with it complete.
    """

    def __init__(self, learner: LearnerGroup) -> None:
        """Nothing is on its way."""
        self.learner = learner
        self._ends: ExitStack | None = None

    def write(self, folder: Path, fill: Callable[[Path], None], then: Callable[[], None]) -> None:
        """Begin a checkpoint.

        Args:
            folder: what is made; complete or absent.
            fill: writes into a folder what is small, and has the learner copy the rest.
            then: called when it has its name.
        """
        self.finish()
        digests: dict[str, str] = {}
        with ExitStack() as ends:
            aside = ends.enter_context(complete_or_absent(folder, lambda _: digests))
            fill(aside)
            self._ends = ends.pop_all()

        def done(found: dict[str, str]) -> None:
            digests.update(found)
            if self._ends is not None:
                self._ends.close()
                self._ends = None
                then()

        self.learner.when_written(aside.absolute(), done)

    def finish(self) -> None:
        """Wait until the checkpoint that is on its way is complete."""
        if self._ends is not None:
            self.learner.until(lambda: self._ends is None)

    def __enter__(self) -> Self:
        """Inside the block checkpoints are written."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """See the class."""
        try:
            if error is None:
                self.finish()
        finally:
            if self._ends is not None:
                with suppress(_Abandoned), self._ends:
                    self._ends = None
                    raise _Abandoned
