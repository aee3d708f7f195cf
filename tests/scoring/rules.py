"""Functions that score, and what else functions do. They are imported by processes of their own, so little is imported here."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SAID: dict[str, Any] = {
    "text": "1.5",
    "truth": True,
    "nothing": None,
    "complex": 1j,
    "vector": np.ones(2),
    "one in a list": [1.0],
    "a truth of NumPy's": np.bool_(True),
    "too large": 10**400,
    "int": 3,
    "float32": np.float32(1.5),
    "int64": np.int64(3),
    "no axes": np.array(2.5),
}


def length_of(prompt: str, answer: str) -> float:
    return float(len(answer))


def broken(prompt: str, answer: str) -> float:
    raise ZeroDivisionError("no luck")


def broken_for_short_answers(prompt: str, answer: str) -> float:
    return {True: float(len(answer))}[len(answer) > 10]


def huge_for_short_answers(prompt: str, answer: str) -> float:
    return 1.0 if len(answer) > 10 else 1e300


def says(prompt: str, answer: str) -> Any:
    return SAID[answer]


def _interrupt() -> None:
    raise KeyboardInterrupt


def _exhaust() -> None:
    raise MemoryError


def _recur() -> None:
    _recur()


def _print() -> None:
    os.write(1, b'{"value": 7}\n')
    print('{"value": 7}', flush=True)


def _leave_a_child() -> None:
    subprocess.Popen(["sleep", "1000"])
    os._exit(9)


DEEDS: dict[str, Callable[[], Any]] = {
    "exit": lambda: sys.exit(3),
    "die": lambda: os._exit(9),
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(1000),
    "recur": _recur,
    "interrupt": _interrupt,
    "memory": _exhaust,
    "print": _print,
    "leave a child": _leave_a_child,
}


def does(prompt: str, answer: str) -> float:
    """What the answer says, and 1 where it says nothing."""
    if answer in DEEDS:
        DEEDS[answer]()
    if answer == "ask another":
        return subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False).returncode
    return os.getpid() if answer == "pid" else 1.0
