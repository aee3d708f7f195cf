"""What a loaded model's weights are called in its files, which engines read too.

transformers holds some families otherwise than their files do: experts of a layer as one tensor, which files name one by one.
It knows the way back (`core_model_loading.revert_weight_conversion`); here that way is taken for a part of the weights at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_dist.errors import WeightError


@dataclass(frozen=True)
class Unit:
    """Weights of the model that become weights of the file together: most are alone, under the same name."""

    own: tuple[str, ...]
    files: tuple[tuple[str, torch.Size], ...]
    """Names and shapes in the file."""

    @property
    def numel(self) -> int:
        """Elements in all."""
        return sum(shape.numel() for _, shape in self.files)


def persistent_buffers(model: Any) -> dict[str, torch.Tensor]:
    """What a model's file holds beside its parameters, by name: router biases, scalars of layers."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def units_of(model: Any, shapes: Sequence[tuple[str, torch.Size]]) -> list[Unit]:
    """The model's weights in their order, cut into the smallest parts that can be named as the file names them."""
    known = dict(shapes)
    units = []
    for names in _groups(model, list(known)):
        told = in_file(model, {name: torch.empty(known[name], device="meta") for name in names})
        units.append(Unit(tuple(names), tuple((name, tensor.shape) for name, tensor in told.items())))
    return units


def in_file(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of whole units under the file's names, in the file's shapes."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(tensors))
    return found


@torch.no_grad()
def take_over(model: Any, found: Mapping[str, torch.Tensor], *, partial: bool = False) -> None:
    """Replace all weights of a model, or with `partial` those that are there, by those of a file's names.

    Raises:
        WeightError: names or shapes are not the model's; names one of them.
    """
    own = dict(model.named_parameters()) | persistent_buffers(model)
    units = units_of(model, [(name, tensor.shape) for name, tensor in own.items()])
    if partial:
        units = [unit for unit in units if any(name in found for name, _ in unit.files)]
    wanted = {name: shape for unit in units for name, shape in unit.files}
    if odd := sorted(set(found) ^ set(wanted)):
        raise WeightError(f"the weights do not fit the model: {len(odd)} names differ, e.g. {odd[0]}")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise WeightError(f"{name} has the shape {list(found[name].shape)}; the model's is {list(shape)}")
    for unit in units:
        if unit.files == ((unit.own[0], own[unit.own[0]].shape),):
            own[unit.own[0]].copy_(found[unit.own[0]])
        else:
            _scatter(model, {name: own[name] for name in unit.own}, found)


def _scatter(model: Any, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Put a unit's elements where they belong: numbers in their places, sent the way that weights go, tell what goes where."""
    first = next(iter(own.values()))
    flat = torch.cat([tensor.flatten() for tensor in own.values()])
    numbers, start = {}, 0
    for name, tensor in own.items():
        numbers[name] = torch.arange(start, start + tensor.numel(), device=first.device).view(tensor.shape)
        start += tensor.numel()
    for name, places in in_file(model, numbers).items():
        flat[places.flatten()] = found[name].flatten().to(flat)
    for tensor, part in zip(own.values(), flat.split([tensor.numel() for tensor in own.values()]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _groups(model: Any, names: Sequence[str]) -> list[list[str]]:
    """Names that the way back brings together, as transformers itself finds them."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = _known_conversions(model)
    back = [conversion.reverse_transform() for conversion in conversions[::-1]]
    renamings = [each for each in back if isinstance(each, WeightRenaming)]
    converters = [each for each in back if isinstance(each, WeightConverter)]
    groups: dict[str, list[str]] = {}
    for name in names:
        called, _ = rename_source_key(name, renamings, converters, reverse=True)
        groups.setdefault(called, []).append(name)
    return list(groups.values())


def _known_conversions(model: Any) -> list[Any]:
    """Those of a model that was not read from a folder."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    found: list[Any] = get_model_conversion_mapping(model, add_legacy=False)
    return [each for each in found if not isinstance(each, PrefixChange)]
