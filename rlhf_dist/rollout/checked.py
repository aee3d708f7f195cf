"""Buckets whose bytes somebody on this node has read and found right: engines that map the one copy of a version check it once.

A file of the node has a place for each bucket: a process that checks it holds a lock on that place, which the kernel drops with
the process, and leaves the bucket's key there when it was right. Whoever comes meanwhile goes on with others, and waits at last.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import xxhash

from rlhf_dist.rollout.places import SharedMemory
from rlhf_dist.store.weights import cells_of, check_bucket, check_buckets, reading_threads

PLACES = 2**16
WIDTH = 16
"""Bytes of a key."""
LOOK_S = 0.002
SLOWEST = 100e6
"""Bytes per second of a check that others wait for; one that takes longer has stopped."""


def check_once(tables: Sequence[pa.Table], version: int, *, file: Path | None = None) -> None:
    """Have all bytes of some buckets checked, by this process or by another of this user and node.

    Args:
        tables: a version's; those that do not lie in shared memory are checked here.
        version: its number.
        file: of what was checked; None: the node's.

    Raises:
        WeightError: see `check_buckets`.
    """
    shared = SharedMemory()
    keys = [_key(table, version, shared) for table in tables]
    check_buckets([table for table, key in zip(tables, keys, strict=True) if key is None])
    left = {key: table for key, table in zip(keys, tables, strict=True) if key is not None}
    path = file or Path(tempfile.gettempdir()) / f"rlhf_dist-checked-{os.getuid()}"
    with _opened(path) as number, ThreadPoolExecutor(reading_threads()) as threads:
        deadline = time.monotonic() + 1 + sum(table.nbytes for table in left.values()) / SLOWEST
        while left:
            found = threads.map(partial(_is_checked, number), left, left.values())
            still = {key: left[key] for key, done in zip(left, found, strict=True) if not done}
            if still.keys() == left.keys():
                if time.monotonic() > deadline:
                    check_buckets([*left.values()])
                    return
                time.sleep(LOOK_S)
            left = still


def _is_checked(number: int, key: bytes, table: pa.Table) -> bool:
    """Whether a bucket is right, by its mark or by reading it; False while another process reads it."""
    place = int.from_bytes(key[:8], "little") % PLACES * WIDTH
    if os.pread(number, WIDTH, place) == key:
        return True
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB, WIDTH, place)
    except OSError:
        return False
    try:
        if os.pread(number, WIDTH, place) != key:
            check_bucket(table)
            os.pwrite(number, key, place)
    finally:
        fcntl.lockf(number, fcntl.LOCK_UN, WIDTH, place)
    return True


def _key(table: pa.Table, version: int, shared: SharedMemory) -> bytes | None:
    """Of a bucket by where it lies and what is to be there; None outside of shared memory."""
    digest = xxhash.xxh3_128(version.to_bytes(8, "little"))
    for cell in cells_of(table):
        place = shared.place(cell.data.address, cell.data.size)
        if place is None:
            return None
        digest.update(f"{place} {cell.name} {cell.dtype} {cell.shape} {cell.checksum}\n".encode())
    return digest.digest()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(number).st_uid != os.getuid():
            raise PermissionError(f"{path} is another user's; remove it")
        yield number
    finally:
        os.close(number)
