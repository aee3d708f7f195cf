"""Rewards that are rules: Python functions by import path, each in a process of its own (`scoring/function_host.py`)."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from rlhf_dist.config import FunctionReward
from rlhf_dist.errors import ConfigError, RewardError, RunError
from rlhf_dist.files import as_json
from rlhf_dist.progress import step
from rlhf_dist.records import RowTold
from rlhf_dist.scoring.answers import Answers, passage
from rlhf_dist.scoring.signatures import Asks

Said = float | str | None
"""Of an answer its score, why there is none, or None where the function says that it has none for such an answer."""
NOTHING = RowTold()
START_S = 300.0
"""Seconds in which a function's module must be imported."""
LOOK_S = 1.0
"""A wait for a function is progress as long as it has time left, and is told to be so this often."""


class _Silent(Exception):
    """The process is gone, or said nothing in time; says which."""


class GuardedRule:
    """A function that can neither hang nor end the process that calls it. Call it from one thread.

    What it may return: a real number, of Python's, NumPy's or torch's, or None where it has no score for such an answer; a truth
    value and text are none.
    """

    def __init__(self, path: str, timeout_s: float, *, key: str = "") -> None:
        """Start its process, and import it there.

        Args:
            path: `package.module:function`.
            timeout_s: seconds granted to it for one answer.
            key: the setting that names it, for messages; the path itself, if none.

        Raises:
            ConfigError: there is no such function, or its module does not come through its import.
        """
        self._path, self._timeout_s, self._key = path, timeout_s, key or path
        self._closed = False
        self._owed = 0
        """Answers that were asked about and have no line yet."""
        self._process, self._connection = self._started()
        self._buffer = b""
        try:
            said = self._line(START_S)
        except _Silent as gone:
            said = {"error": f"it {gone}, while it was imported"}
        if "error" in said:
            self.close()
            raise ConfigError(f"{self._key} is {path!r}: {said['error']}; expected package.module:function")
        self.asks = Asks(*said["asks"])
        """What it is to be given."""

    def __call__(self, prompt: str, answer: str, told: RowTold = NOTHING) -> float:
        """The score of one answer; NaN where it has none for such an answer, and says None.

        Raises:
            RewardError: names function, prompt and answer, and what happened, if only that it said no finite number.
        """
        (said,) = self.scores([(prompt, answer, *told)])
        if isinstance(said, float) and not math.isfinite(said):
            said = f"{self._path} says {said:g}; expected a finite number, or None"
        if isinstance(said, str):
            raise RewardError(f"{said}, on prompt {passage(prompt)!r} and answer {passage(answer)!r}")
        return float("nan") if said is None else said

    def scores(self, texts: Sequence[tuple[str, ...]]) -> Iterator[Said]:
        """Of each (prompt, answer), with or without `RowTold`'s fields, what the function says (it may be NaN), or why nothing.

        One of TRL's form is asked about all at once. If that call fails in any way, it is asked about each by itself.
        """
        together = self._together(texts) if self.asks.batch and len(texts) > 1 else None
        if together is not None:
            return iter(together)
        groups = [[each] for each in texts] if self.asks.batch else [texts]
        return chain.from_iterable(map(self._one_by_one, groups))

    def _together(self, texts: Sequence[tuple[str, ...]]) -> list[Said] | None:
        """What the function says of all; None: the call failed, whichever answer it was that made it fail."""
        self._ready()
        try:
            self._send(texts)
            lines = [self._line(self._timeout_s * (1 if n else len(texts))) for n in range(len(texts))]
        except _Silent:
            self._end()
            return None
        self._owed = 0
        step()
        return None if any("together" in told for told in lines) else [self._said(told) for told in lines]

    def _one_by_one(self, texts: Sequence[tuple[str, ...]]) -> Iterator[Said]:
        done = 0
        while done < len(texts):
            self._ready()
            try:
                self._send(texts[done:])
                for _ in texts[done:]:
                    told = self._line(self._timeout_s)
                    done, self._owed = done + 1, self._owed - 1
                    yield self._said(told)
                    step()
            except _Silent as gone:
                self._end()
                if self._closed:
                    raise RunError(f"{self._path} was called after its end") from None
                done += 1
                yield f"{self._path} {gone}"

    def _said(self, told: dict[str, Any]) -> Said:
        said: Said = told["value"] if "value" in told else f"{self._path} {told['error']}"
        return said

    def close(self) -> None:
        """End its process; another thread may be waiting for it."""
        self._closed = True
        self._end()

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A session of its own: Ctrl-C is the caller's to answer, and what the function started ends with it."""
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(each or os.getcwd() for each in sys.path)
        command = ["-P", "-m", "rlhf_dist.scoring.function_host", self._path, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )
        return process, ours

    def _ready(self) -> None:
        """A process that is there: where the last one is gone, between two answers too, another is started."""
        if self._closed:
            raise RunError(f"{self._path} was called after its end")
        if self._process.poll() is None and not self._owed and self._is_quiet():
            return
        self._end()
        self._process, self._connection = self._started()
        self._buffer = b""
        try:
            said = self._line(START_S)
        except _Silent as gone:
            said = {"error": f"it {gone}, while it was imported again"}
        if "error" in said:
            raise RewardError(f"{self._path}: {said['error']}")

    def _is_quiet(self) -> bool:
        """Whether it says nothing unasked: that would be that it has ended."""
        self._connection.settimeout(0)
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _send(self, texts: Sequence[tuple[str, ...]]) -> None:
        self._connection.settimeout(self._timeout_s)
        self._owed = len(texts)
        try:
            self._connection.sendall(as_json(list(texts)).encode() + b"\n")
        except OSError:
            raise _Silent("ended its process") from None

    def _line(self, limit_s: float) -> dict[str, Any]:
        """The next message."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Silent(f"did not return within {limit_s:g} s")
            self._connection.settimeout(min(left, LOOK_S))
            try:
                piece = self._connection.recv(65_536)
            except TimeoutError:
                step()
                continue
            except OSError:
                piece = b""
            if not piece:
                raise _Silent("ended its process")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        if "ended" in told:
            code = int(told["ended"])
            by = f" by {signal.Signals(-code).name}" if code < 0 else f", exit code {code}"
            raise _Silent(f"ended its process{by}")
        return told

    def _end(self) -> None:
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._owed = 0


class RuleReward:
    """A `Component` around a function."""

    def __init__(self, settings: FunctionReward) -> None:
        """Import the function, in a process of its own."""
        self.name = settings.name
        self._rule = GuardedRule(settings.path, settings.timeout_s, key=f"reward {settings.name}")

    def score(self, answers: Answers) -> dict[str, list[float | None]]:
        """What the function says of each answer; one of which it says neither a number nor None has failed."""
        texts = answers.texts
        asked = (
            [(*text, *told) for text, told in zip(texts, answers.told, strict=True)] if self._rule.asks.rows else texts
        )
        found: list[float | None] = []
        for number, said in enumerate(self._rule.scores(asked)):
            if isinstance(said, str):
                answers.fail(number, self.name, said)
            found.append(float("nan") if isinstance(said, str) else said)
        return {self.name: found}

    def close(self) -> None:
        """End the function's process."""
        self._rule.close()
