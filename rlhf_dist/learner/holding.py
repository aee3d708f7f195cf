"""Memory in which a rank holds versions of its weights for the engines beside it, instead of sending them."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from rlhf_dist.learner.staging import ALIGNED
from rlhf_dist.store.held import HeldTensor, digest, own_place


class _Memory(NamedTuple):
    """Of one bucket, and how others open it."""

    bytes: torch.Tensor
    """[size], uint8"""
    file: str
    handle: dict[str, Any] | None


class Holding:
    """The newest complete version and the newest partial one, each whole, on this rank's device."""

    def __init__(self, device: torch.device) -> None:
        """Hold nothing yet.

        Args:
            device: where the weights are, and stay.
        """
        self._device = device
        self._held: dict[bool, list[_Memory]] = {False: [], True: []}

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that are held."""
        return sum(memory.bytes.numel() for version in self._held.values() for memory in version)

    def begin(self, *, partial: bool) -> None:
        """Another version comes in the place of the one of its kind, whose engines are done with it.

        A partial one of an older complete version is of no use any more.
        """
        self._held[partial] = []
        if not partial:
            self._held[True] = []

    def keep(self, tensors: Mapping[str, torch.Tensor], *, partial: bool) -> list[HeldTensor]:
        """Copy tensors into memory that others open; returns what they must know."""
        offsets, needed = {}, 0
        for name, tensor in tensors.items():
            offsets[name] = needed
            needed += -(-tensor.nbytes // ALIGNED) * ALIGNED
        memory = _on_card(needed, self._device) if self._device.type == "cuda" else _in_file(needed)
        self._held[partial].append(memory)
        return [_row(memory, offsets[name], name, tensor) for name, tensor in tensors.items()]


def _row(memory: _Memory, offset: int, name: str, tensor: torch.Tensor) -> HeldTensor:
    copy = memory.bytes[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    head = HeldTensor(
        name, dtype, tuple(tensor.shape), digest(copy), own_place(), memory.file, memory.handle, offset, 0
    )
    return head._replace(size=tensor.nbytes)


def _in_file(num_bytes: int) -> _Memory:
    """A file without a name, which is gone with its last reader."""
    number = os.memfd_create("rlhf_dist-held")
    os.truncate(number, max(1, num_bytes))
    found = torch.frombuffer(mmap.mmap(number, 0), dtype=torch.uint8)
    weakref.finalize(found, os.close, number)
    return _Memory(found, f"/proc/{os.getpid()}/fd/{number}", None)


def _on_card(num_bytes: int, device: torch.device) -> _Memory:
    """Named as torch.multiprocessing names it (torch/multiprocessing/reductions.py)."""
    found = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    storage = found.untyped_storage()
    _, memory, size, offset, counter, counter_offset, event, event_sync = storage._share_cuda_()
    # torch counts one reader of each handle, and would never free what nobody read. Here memory is freed with the version.
    torch.UntypedStorage._release_ipc_counter(counter, counter_offset, device=device)
    names = ("memory", "size", "offset", "counter", "counter_offset", "event", "event_sync")
    values = (memory, size, offset, counter, counter_offset, event, event_sync)
    return _Memory(found, "", dict(zip(names, values, strict=True)))
