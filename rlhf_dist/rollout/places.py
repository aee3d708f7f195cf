"""Where a version's bytes lie, so that an engine's other processes map them instead of having a copy.

What Ray hands out are views of its object store, which is one file of each node's shared memory: without a name, mapped by all
workers, held open by the raylet alone. A process of the same user opens it anew from there, so that all engines of a node, and
all processes of each, read the one copy that was fetched. Bytes that lie elsewhere are copied into a file of that kind.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from rlhf_dist.store.weights import Cell, tensor_of

ALIGNMENT = 64
"""Of tensors in a file of ours, in bytes."""


class MappedTensor(NamedTuple):
    """One tensor in a file that can be mapped."""

    name: str
    dtype: str
    """Torch's name of it."""
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    """Bytes."""


def opened(places: Iterable[MappedTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as read-only views: of a tensor's pages those are read that are asked for."""
    files: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
    for each in places:
        if each.file not in files:
            files[each.file] = _mapped(each.file)
        yield each.name, tensor_of(files[each.file][each.offset :][: each.size], each.dtype, each.shape)


def _mapped(path: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ), dtype=np.uint8)


@contextmanager
def places_of(cells: Sequence[Cell]) -> Iterator[list[MappedTensor]]:
    """Where other processes of this user find some tensors, inside the block; the caller keeps their memory until its end."""
    with ExitStack() as files:
        shared, own = _SharedFiles(files), _OwnFile(files)
        yield [_place(cell, shared, own) for cell in cells]


def _place(cell: Cell, shared: _SharedFiles, own: _OwnFile) -> MappedTensor:
    file, offset = shared.holding(cell.data.address, cell.data.size) or own.copy(cell)
    return MappedTensor(cell.name, cell.dtype, cell.shape, file, offset, cell.data.size)


class _OwnFile:
    """A file in memory, which is gone with this process and with those that map it, however they end."""

    def __init__(self, files: ExitStack) -> None:
        self._number = os.memfd_create("rlhf_dist-weights")
        files.callback(os.close, self._number)
        self._end = 0

    def copy(self, cell: Cell) -> tuple[str, int]:
        """Append a tensor; returns path and offset."""
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        with open(self._number, "wb", closefd=False) as file:
            file.seek(offset)
            file.write(cell.data)
        self._end = offset + cell.data.size
        return _path(self._number), offset


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    file: tuple[int, int]
    """Device and inode."""


class InFile(NamedTuple):
    """Of bytes in a file that processes share memory by."""

    file: tuple[int, int]
    """Device and inode."""
    offset: int


class SharedMemory:
    """What this process shares with others, now."""

    def __init__(self) -> None:
        """Look."""
        self._mappings = sorted(_shared_mappings())

    def place(self, address: int, size: int) -> InFile | None:
        """Where bytes at an address lie; None where no other process could map them."""
        found = bisect_right(self._mappings, address, key=lambda each: each.start) - 1
        if found < 0 or address + size > self._mappings[found].end:
            return None
        mapping = self._mappings[found]
        return InFile(mapping.file, address - mapping.start + mapping.offset)


class _SharedFiles:
    """The files that this process shares memory by, opened anew."""

    def __init__(self, files: ExitStack) -> None:
        self._files = files
        self._shared = SharedMemory()
        self._opened: dict[tuple[int, int], str | None] = {}

    def holding(self, address: int, size: int) -> tuple[str, int] | None:
        """Path and offset of what lies at an address; None where no other process could map it."""
        place = self._shared.place(address, size)
        if place is None:
            return None
        if place.file not in self._opened:
            self._opened[place.file] = self._open(place.file)
        path = self._opened[place.file]
        return None if path is None else (path, place.offset)

    def _open(self, file: tuple[int, int]) -> str | None:
        """From one who holds it open: this process, or one above it, as the raylet is of all its workers."""
        for process in (os.getpid(), *(each.pid for each in psutil.Process().parents())):
            with suppress(OSError):  # it has ended, or is another user's
                for number in Path(f"/proc/{process}/fd").iterdir():
                    with suppress(OSError):
                        status = number.stat()
                        if (status.st_dev, status.st_ino) == file:
                            own = os.open(number, os.O_RDONLY)
                            self._files.callback(os.close, own)
                            return _path(own)
        return None


def _path(number: int) -> str:
    return f"/proc/{os.getpid()}/fd/{number}"


def _shared_mappings() -> Iterator[_Mapping]:
    """See proc_pid_maps(5)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, offset, device, inode, *_ = line.split(maxsplit=5)
        if rights[3] == "s" and inode != "0":
            start, end = (int(each, 16) for each in span.split("-"))
            major, minor = (int(each, 16) for each in device.split(":"))
            yield _Mapping(start, end, int(offset, 16), (os.makedev(major, minor), int(inode)))
