"""Answers that are Python code, which must pass tests. `sandbox.py` runs them, `lockdown.py` says what that protects against."""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_dist.files import as_json
from rlhf_dist.verifiers.texts import block_of

PROGRAM = Path(__file__).with_name("sandbox.py")
LONGEST_VERDICT = 65_536
MIB = 2**20


def passes_tests(
    prompt: str, answer: str, tests: str | Sequence[str] | None, timeout_s: float = 10.0, memory_mib: int = 512
) -> float | None:
    """Whether an answer's code (its last ```python block, else all of it) passes tests, which see what it defines by name.

    It runs with the standard library only, locked down, in a process that is not the tests': they call it with plain data
    (numbers, texts, lists, tuples, sets, dicts) and its own objects, and get the same back. What it does to its interpreter is
    its own affair. Objects of its classes are alike if it says so, and equal no plain data; tests cannot give it functions,
    inherit from its classes, or catch its exceptions by classes of its own.

    Args:
        prompt: not looked at.
        answer: the policy's.
        tests: Python code with assertions (`assert add(1, 2) == 3`), or several pieces of it.
        timeout_s: of the clock and of computing, for all of it.
        memory_mib: of each of the two processes.

    Raises:
        OSError: this machine cannot lock it down.
        ValueError: there are no tests.
    """
    if tests is None:
        return None
    pieces = [tests] if isinstance(tests, str) else [*tests]
    if not any(piece.strip() for piece in pieces):
        raise ValueError(f"tests is {tests!r}; expected Python code")
    code = block_of(answer, "python", "py", "python3")
    return float(not why_failed(code, pieces, timeout_s=timeout_s, memory_mib=memory_mib))


def why_failed(code: str, tests: Sequence[str], *, timeout_s: float, memory_mib: int = 512) -> str:
    """Why code does not pass tests; empty: it does.

    Raises:
        OSError: this machine cannot lock it down.
    """
    nonce = secrets.token_hex(16)
    with ExitStack() as ends, TemporaryDirectory() as folder:
        link = [each.detach() for each in socket.socketpair()]
        verdict, told = os.pipe()
        limits = (os.getpid(), memory_mib * MIB, max(1, math.ceil(timeout_s)))
        deadline = time.monotonic() + timeout_s
        try:
            for role, handles, job in (
                ("answer", link[:1], {"code": code}),
                ("tests", [link[1], told], {"tests": [*tests], "nonce": nonce}),
            ):
                ends.enter_context(_process([role, handles[0], *limits, *handles[1:]], handles, folder, job))
        finally:
            for handle in (*link, told):
                os.close(handle)
            ends.callback(os.close, verdict)
        return _read(verdict, nonce, deadline, timeout_s)


@contextmanager
def _process(
    arguments: Sequence[object], handles: Sequence[int], folder: str, job: Mapping[str, Any]
) -> Iterator[None]:
    """A process that knows nothing of ours inside the block: no variables, no files, no folder but its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=handles,
        env={},
        cwd=folder,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        with suppress(OSError), process.stdin:  # one that could not start reads nothing
            process.stdin.write(as_json(job).encode())
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(verdict: int, nonce: str, deadline: float, timeout_s: float) -> str:
    """What the tests' process says, which alone knows the nonce."""
    said = b""
    while not said.endswith(b"\n") and len(said) < LONGEST_VERDICT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([verdict], [], [], left)[0]:
            return f"it took longer than {timeout_s:g} s"
        piece = os.read(verdict, LONGEST_VERDICT)
        if not piece:
            return "the tests' process ended before its verdict"
        said += piece
    heard = json.loads(said)
    if heard.get("nonce") != nonce:
        return "the verdict is not the tests'"
    if "refused" in heard:
        raise OSError(heard["refused"])
    return str(heard["failed"])
