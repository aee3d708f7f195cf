"""One run, one folder: the process that runs a stage holds a lock on the run's folder, and any death of it releases the lock.

The lock is `flock` on the file `.lock`, which says who holds it. Linux passes it on to NFS servers (unless mounted with
`local_lock`), so it holds between machines too. Child processes do not inherit it: Python opens files close-on-exec.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.files import as_json, check_writable, unwritable

log = logging.getLogger(__name__)

LOCK = ".lock"
HINT = "Expected a folder on a disk with room: make some, or name another by --run-dir"
TRIES, PAUSE_S = 10, 0.05
"""Whoever only asks (`is_held`) holds the lock for a moment."""
LACKING = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems say that have no locks."""
_held: Counter[Path] = Counter()
"""Blocks of this process that are inside, by folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process writes into the run's folder; within such a block, that one serves.

    A folder below `stages/` of a run is part of that run, and so is its lock. A folder that is made here and still empty at the
    end is taken away again.

    Raises:
        EnvironmentProblem: another process holds it (names who, where and since when), or it cannot be written.
    """
    run = _run_of(folder).resolve()
    if _held[run]:
        _held[run] += 1
        try:
            yield
        finally:
            _held[run] -= 1
        return
    new = not os.path.exists(run)
    check_writable(run, HINT)
    handle = _taken(run)
    _held[run] += 1
    try:
        yield
    finally:
        _held[run] -= 1
        with suppress(OSError):
            (run / LOCK).unlink()
        if new:
            with suppress(OSError):
                run.rmdir()
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether some process runs a stage in the folder; only to be asked on a machine that sees the lock."""
    run = _run_of(folder).resolve()
    if _held[run]:
        return True
    try:
        handle = os.open(run / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _locks(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _run_of(folder: Path) -> Path:
    """The folder itself, or the run that it is a stage of."""
    above = folder.absolute().parent
    part = above.name == "stages" and any(
        os.path.exists(above.parent / name) for name in (LOCK, "config.yaml", "pipeline.yaml")
    )
    return above.parent if part else folder


def _taken(run: Path) -> int:
    """A descriptor that holds the lock."""
    for _ in range(TRIES):
        try:
            handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(run, error, HINT) from error
        # Who held it before may have deleted the file between our opening it and locking it: then it locks nothing.
        if _locks(handle, fcntl.LOCK_EX) and _is_still(run / LOCK, handle):
            _sign(run, handle)
            return handle
        told = _holder(handle)
        os.close(handle)
        time.sleep(PAUSE_S)
    raise EnvironmentProblem(
        f"{run}: {told} works in this folder; expected nobody, since two runs in one folder would mix what they write. Wait for "
        "its end, stop it, or name another folder by --run-dir"
    )


def _locks(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LACKING:
            raise
        log.warning("the run folder's file system has no locks, so nothing keeps a second run out of it: %s", error)
    return True


def _is_still(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except OSError:
        return False


def _sign(run: Path, handle: int) -> None:
    """Say who holds it."""
    me = as_json({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, me.encode(), 0)
    except OSError as error:
        os.close(handle)
        raise unwritable(run, error, HINT) from error


def _holder(handle: int) -> str:
    """Who holds it, as far as the file says."""
    try:
        told: dict[str, Any] = json.loads(os.pread(handle, 4096, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["since"]))
        return f"process {told['pid']} on {told['host']}, since {since},"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
