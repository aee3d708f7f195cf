"""Ctrl-C, SIGTERM and SIGHUP end a run in order: as an exception, so that every `finally` on the way does its part."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to end."""

    def __init__(self, number: int) -> None:
        """By which signal."""
        self.number = signal.Signals(number)
        super().__init__(f"stopped by {'Ctrl-C' if self.number == signal.SIGINT else self.number.name}")

    @property
    def exit_code(self) -> int:
        """What shells call the end of a process by this signal."""
        return 128 + self.number


_came: list[int] = []
"""The signal that `stoppable` has seen."""


def stop_of(error: BaseException) -> Stopped | None:
    """Who asked for the end, where that is why this was raised; None: nobody did.

    Ray's calls raise a bare KeyboardInterrupt in the place of what a handler raised while they waited.
    """
    if isinstance(error, Stopped):
        return error
    return Stopped(_came[0]) if _came and isinstance(error, KeyboardInterrupt) else None


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block the first of the signals raises `Stopped`; further ones are ignored, since the end is under way."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        _came.append(number)
        raise Stopped(number)

    before = {each: signal.signal(each, stop) for each in SIGNALS}
    try:
        yield
    except KeyboardInterrupt as error:
        raise stop_of(error) or error from None
    finally:
        _came.clear()
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """What the block does to the handlers of these signals is undone: Ray puts its own in the place of everybody's."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # None: it was not set from Python, so Python cannot set it again
                signal.signal(each, handler)


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes inside the block takes effect at its end; the handlers that were there are kept."""
    came: list[int] = []
    with handlers_kept():
        for each in SIGNALS:
            signal.signal(each, lambda number, _: came.append(number))
        yield
    if came:
        signal.raise_signal(came[0])
