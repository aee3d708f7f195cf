"""Functions that score, and what else functions do. They are imported by processes of their own, so little is imported here."""

import ctypes
import os
import re
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
    "not a number": float("nan"),
    "infinite": float("-inf"),
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


def matches_for_ever(prompt: str, answer: str, pattern: str) -> float:
    return float(re.search(pattern, answer) is not None)


def with_columns(prompt: str, answer: str, solution: str, weight: float = 1.0, **others: Any) -> float:
    """2 for the right answer, and a share of its own for each column that it did not ask for."""
    return weight * (2.0 * (answer == solution) + len(others) / 8)


def close_to(prompt: str, answer: str, level: int = 7) -> float | None:
    return None if level == 0 else float(level)


def positions(prompt: str, answer: str, more: int, /) -> float:
    return 0.0


# As in TRL's documentation (grpo_trainer, "Using a custom reward function"), the plain and the conversational form.
def trl_matches(completions: list[str], ground_truth: list[str], **kwargs: Any) -> list[float]:
    found = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [each.group(1) if each else "" for each in found]
    return [1.0 if content == truth else 0.0 for content, truth in zip(contents, ground_truth, strict=True)]


def trl_format(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", content) else 0.0 for content in contents]


def trl_math(prompts: list[Any], completions: list[Any], task: list[str], **kwargs: Any) -> list[float | None]:
    """Of several tasks, as TRL's multi-task example; it ends its process at an answer that says so."""
    if "crash" in completions:
        os._exit(9)
    if "raise" in completions:
        raise ValueError("no luck")
    return [float(len(answer)) if of == "math" else None for answer, of in zip(completions, task, strict=True)]


async def trl_later(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(prompt) + len(completion)) for prompt, completion in zip(prompts, completions, strict=True)]


def trl_short(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0]


def of_place(prompt: str, answer: str, place: int) -> float:
    return float(place)
