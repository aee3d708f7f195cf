"""Frozen weights that leave their device while others need it, and come back."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn


class HostCopy:
    """Weights and buffers of some frozen modules, on their device or away.

    They never change, so they are copied out once, into pinned memory: from then on leaving costs nothing, and coming back one
    copy at the speed of the link. On a CPU they are where they would go, and stay.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take modules that lie on their device."""
        tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
        self._here = {id(own): own for own in map(of_this_process, tensors)}
        self._devices: dict[int, torch.device] = {}
        """Of each that is away."""
        self._kept: dict[int, torch.Tensor] = {}

    def leave(self) -> None:
        """Give the device's memory back."""
        for number, tensor in self._here.items():
            if tensor.device.type == "cpu":
                continue
            if number not in self._kept:
                self._kept[number] = pinned(tensor)
            self._devices[number] = tensor.device
            tensor.data = self._kept[number]
        if self._devices:
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Be on the device again."""
        for number, device in self._devices.items():
            tensor = self._here[number]
            tensor.data = tensor.data.to(device, non_blocking=True)
        self._devices.clear()


@torch.no_grad()
def of_this_process(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or this process's part of one that lies over several."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the host that devices read at the full speed of their link."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
    return made.copy_(tensor.data)
