"""Host memory through which weights leave a rank: two buffers by turns, so that one fills while the other is hashed and sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch

ALIGNED = 64
"""Bytes at whose multiples tensors begin in a buffer: a cache line, and more than any element."""

Staged = Callable[[], dict[str, torch.Tensor]]
"""Waits until tensors have arrived in host memory, and returns them."""


class Staging:
    """Brings tensors into host memory. What it returns is good until the next but one are taken.

    From a card they are copied on a stream of their own into pinned memory, while the caller goes on.
    """

    def __init__(self, device: torch.device) -> None:
        """Hold nothing yet.

        Args:
            device: where the tensors come from.
        """
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers = [self._memory(0), self._memory(0)]

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory that are held."""
        return sum(buffer.numel() for buffer in self._buffers)

    def take(self, tensors: Mapping[str, torch.Tensor], *, lasting: bool) -> Staged:
        """Begin to copy tensors, which may go away at once.

        Args:
            tensors: by name.
            lasting: they stay what they are until they are sent; in host memory they are not copied then.
        """
        if lasting and self._device.type == "cpu":
            found = dict(tensors)
            return lambda: found
        places, needed = {}, 0
        for name, tensor in tensors.items():
            places[name] = needed
            needed += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self._buffers.reverse()
        if self._buffers[0].numel() < needed:
            self._buffers[0] = self._memory(needed)
        found = {
            name: self._buffers[0][start : start + tensors[name].nbytes]
            .view(tensors[name].dtype)
            .view(tensors[name].shape)
            for name, start in places.items()
        }
        arrived = self._copy(tensors, found)

        def wait() -> dict[str, torch.Tensor]:
            arrived()
            return found

        return wait

    def _copy(self, tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
        """Returns what waits for the copies."""
        stream = self._stream
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            for name, tensor in tensors.items():
                targets[name].copy_(tensor, non_blocking=True)
                if stream is not None:
                    tensor.record_stream(stream)  # whoever frees it meanwhile, its memory waits for the copy
        if stream is None:
            return lambda: None
        done: Any = torch.cuda.Event()
        done.record(stream)
        return lambda: done.synchronize()

    def _memory(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
