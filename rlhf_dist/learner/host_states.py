"""An optimiser's states, masters and gradients that leave the device while others need it, and come back.

DeepSpeed's own `offload_states` does not know stage 0 and refuses torch's AdamW in stage 3. Here memory is moved beneath the
tensors: a storage is emptied and later filled again, so everybody's views of it, DeepSpeed's many among them, stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlhf_dist.models.host_copy import pinned

PIECE = 2**28
"""Bytes of a pinned buffer; torch rounds each up to a power of two."""
LEAST = 2**10
"""Bytes of what is worth moving: not the number of steps of each parameter."""


class HostStates:
    """All that an engine's optimiser holds on the device, but not the module's own weights, which are there to be published."""

    def __init__(self, engine: Any) -> None:
        """Of a DeepSpeed engine."""
        self._engine = engine
        self._away: list[tuple[torch.UntypedStorage, list[torch.Tensor]]] = []
        self._kept: dict[tuple[int, int], list[torch.Tensor]] = {}
        """Pinned buffers by the storage's number and size: to make them takes longer than to fill them."""

    def leave(self) -> int:
        """Give the device's memory back; returns the bytes that are away. Does nothing when they are."""
        if not self._away:
            for number, storage in enumerate(self._storages()):
                self._away.append((storage, self._copied(number, storage)))
                storage.resize_(0)
            self._settle()
        return sum(piece.nbytes for _, pieces in self._away for piece in pieces)

    def come_back(self) -> None:
        """Be on the device again, to the bit. Does nothing when they are."""
        for storage, pieces in self._away:
            storage.resize_(sum(piece.nbytes for piece in pieces))
            for own, piece in zip(_bytes_of(storage).split(PIECE), pieces, strict=True):
                own.copy_(piece, non_blocking=True)
        self._away.clear()
        self._settle()

    def _copied(self, number: int, storage: torch.UntypedStorage) -> list[torch.Tensor]:
        own, key = _bytes_of(storage).split(PIECE), (number, storage.nbytes())
        if key in self._kept:
            for piece, kept in zip(own, self._kept[key], strict=True):
                kept.copy_(piece, non_blocking=True)
            return self._kept[key]
        made = [pinned(piece) for piece in own]
        if storage.device.type == "cuda":
            self._kept[key] = made
        return made

    def _settle(self) -> None:
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Each once, in an order that stays."""
        stay = {_place(each) for each in _of_module(self._engine.module)}
        for tensor in _within(self._engine.optimizer, set()):
            storage = tensor.untyped_storage()
            if tensor.device == self._engine.device and storage.nbytes() >= LEAST and storage.resizable():
                place = storage.data_ptr()
                if place not in stay:
                    stay.add(place)
                    yield storage


def _of_module(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Its weights and buffers; under ZeRO-3 also this rank's share of each weight, and of those that a node has."""
    for parameter in module.parameters():
        yield parameter.data
        for name in ("ds_tensor", "ds_secondary_tensor"):
            if isinstance(share := getattr(parameter, name, None), torch.Tensor):
                yield share
    yield from module.buffers()


def _within(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Tensors of an object, of those that it is made of, and the gradients of these."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        if thing.layout is torch.strided:
            yield thing
        if thing.is_leaf and thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, dict):
        for each in [*thing.keys(), *thing.values()]:
            yield from _within(each, seen)
    elif isinstance(thing, list | tuple | set):
        for each in thing:
            yield from _within(each, seen)
    elif not isinstance(thing, torch.nn.Module) and type(thing).__module__.startswith(("deepspeed.", "torch.optim.")):
        yield from _within(vars(thing) if hasattr(thing, "__dict__") else None, seen)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
