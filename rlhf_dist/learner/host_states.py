"""What of a DeepSpeed engine leaves the device while others need it, and comes back.

It is an optimiser's states, masters and gradients, or the weights of a model that is only asked.

DeepSpeed's own `offload_states` does not know stage 0 and refuses torch's AdamW in stage 3. Here memory is moved beneath the
tensors: a storage is emptied and later filled again, so everybody's views of it, DeepSpeed's many among them, stay what they are.
"""

from __future__ import annotations

from collections import defaultdict
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
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        """Pinned buffers that hold nothing now, by their bytes: to make them takes longer than to fill them."""

    def leave(self) -> int:
        """Give the device's memory back; returns the bytes that are away. Does nothing when they are."""
        if not self._away:
            self._away = [(storage, [*map(self._copied, _pieces(storage))]) for storage in self._storages()]
            self._empty()
        return sum(piece.nbytes for _, pieces in self._away for piece in pieces)

    def come_back(self) -> None:
        """Be on the device again, to the bit. Does nothing when they are."""
        self._fill()
        for piece in (piece for _, pieces in self._away for piece in pieces if self._on_card):
            self._free[piece.nbytes].append(piece)
        self._away.clear()

    @property
    def _on_card(self) -> bool:
        """Else a copy on the host is as much memory as what it is of, and kept no longer than it must be."""
        return bool(self._engine.device.type == "cuda")

    def _copied(self, own: torch.Tensor) -> torch.Tensor:
        kept = self._free[own.nbytes]
        return kept.pop().copy_(own, non_blocking=True) if kept else pinned(own)

    def _empty(self) -> None:
        for storage, _ in self._away:
            storage.resize_(0)
        self._settle()

    def _fill(self) -> None:
        for storage, pieces in self._away:
            storage.resize_(sum(piece.nbytes for piece in pieces))
            for own, piece in zip(_pieces(storage), pieces, strict=True):
                own.copy_(piece, non_blocking=True)
        self._settle()

    def _settle(self) -> None:
        if self._on_card:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        """Each once."""
        stay = {_place(each) for each in _of_module(self._engine.module)}
        return self._movable(_within(self._engine.optimizer, set()), besides=stay)

    def _movable(self, tensors: Iterator[torch.Tensor], besides: set[int]) -> Iterator[torch.UntypedStorage]:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device == self._engine.device and storage.nbytes() >= LEAST and storage.resizable():
                place = storage.data_ptr()
                if place not in besides:
                    besides.add(place)
                    yield storage


class HostWeights(HostStates):
    """All weights of an engine without an optimiser. They never change, so they are copied out once."""

    def __init__(self, engine: Any) -> None:
        """Of a DeepSpeed engine."""
        super().__init__(engine)
        self._is_away = False

    def leave(self) -> int:
        """See `HostStates`."""
        if self._away and not self._is_away:
            self._empty()
        self._is_away = True
        return super().leave()

    def come_back(self) -> None:
        """See `HostStates`."""
        if self._is_away:
            self._fill()
        self._is_away = False
        if not self._on_card:
            self._away.clear()

    def _storages(self) -> Iterator[torch.UntypedStorage]:
        return self._movable(_of_module(self._engine.module), besides=set())


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


def _pieces(storage: torch.UntypedStorage) -> tuple[torch.Tensor, ...]:
    """Views of its bytes."""
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return tuple(whole.split(PIECE))
