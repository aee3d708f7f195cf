"""The process in which a user's function runs: `python -m rlhf_dist.scoring.function_host MODULE:FUNCTION SOCKET PARENT`.

Whatever the function does to its process (it ends it, it never returns, it crashes), the scorer goes on. One line of JSON per
message, over a socket of its own, so that what the function prints disturbs nothing: in come lists of [prompt, answer] with what
else is told of each (`records.RowTold`), out goes, when the function is imported, what it asks for or what was wrong, and then a
line per answer.

It is two processes: one calls the function, and the other only waits for its end, to tell how it ended: in Ray's processes, which
ignore SIGCHLD, nobody learns that of a child.
"""

from __future__ import annotations

import importlib
import json
import numbers
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rlhf_dist.cluster.orphans import die_with
from rlhf_dist.scoring.signatures import Asks, Item, asks_of, called, called_together

LONGEST_CAUSE = 500
"""Characters of what a function says went wrong."""


class NoNumber(Exception):
    """What a function returned is no score."""


def number(said: Any) -> float:
    """What a function returned, as a score: a real number of Python's, NumPy's or torch's; no truth value, no text.

    Raises:
        NoNumber: it is none; says what it is.
    """
    if getattr(said, "shape", None) == ():
        said = said.item()
    if isinstance(said, bool) or not isinstance(said, numbers.Real):
        shown = repr(said)
        raise NoNumber(f"returned {type(said).__name__} {shown[:100]}{'...' * (len(shown) > 100)}; expected a number")
    return float(said)


def described(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception of the user's may fail in being shown
        text = "(it cannot be shown)"
    return f"{type(error).__name__}: {text}"[:LONGEST_CAUSE]


def main(path: str, handle: int, parent: int) -> None:
    """Import the function, and answer until the scorer is gone."""
    die_with(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.set_inheritable(handle, False)
    here = os.getpid()
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        with suppress(OSError):
            os.write(handle, json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
    else:
        die_with(here)
        _serve(path, handle)


def _serve(path: str, handle: int) -> None:
    with socket.socket(fileno=handle) as connection, connection.makefile("rwb") as lines:

        def tell(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message).encode() + b"\n")
            lines.flush()

        module, _, name = path.partition(":")
        try:
            rule: Callable[..., Any] = getattr(importlib.import_module(module), name)
            if not callable(rule):
                raise TypeError(f"{name} is {type(rule).__name__}; expected a function")
            asks = asks_of(rule)
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
            tell({"error": described(error)})
            return
        tell({"asks": asks})
        for line in lines:
            items = [Item.of(*each) for each in json.loads(line)]
            for told in _of_batch(rule, asks, items) if asks.batch else (_of_one(rule, asks, item) for item in items):
                tell(told)


def _of_one(rule: Callable[..., Any], asks: Asks, item: Item) -> dict[str, Any]:
    try:
        return _score(called(rule, asks, item))
    except BaseException as error:  # noqa: BLE001 - a function may raise anything, too
        return {"error": f"raised {described(error)}"}


def _of_batch(rule: Callable[..., Any], asks: Asks, items: list[Item]) -> list[dict[str, Any]]:
    try:
        return [_score(each) for each in called_together(rule, asks, items)]
    except BaseException as error:  # noqa: BLE001 - as above
        return [{"error": f"raised {described(error)}", "together": True}] * len(items)


def _score(said: Any) -> dict[str, Any]:
    """A score as it is told; null where the function says by None that it has none for this answer."""
    try:
        return {"value": None if said is None else number(said)}
    except NoNumber as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
