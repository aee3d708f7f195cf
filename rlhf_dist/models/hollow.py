"""Models that have names, shapes and buffers but no weights yet: what is to be shared out over ranks never lies whole in one.

Such a model is made from its config and the headers of its files, then checked, adapted and wrapped like any other; each of its
parameters is one element, seen as if it were many. At last `stored.FileWeights` reads them, for whoever shares them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rlhf_dist.models.file_names import persistent_buffers
from rlhf_dist.models.stored import FileWeights

MARK = "_has_no_weights_yet"


def is_hollow(parameter: torch.Tensor) -> bool:
    """Whether a parameter has no weights yet."""
    return parameter.is_meta or hasattr(parameter, MARK)


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """A parameter's shape, also where ZeRO-3 has taken its elements apart."""
    found: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return found


@torch.no_grad()
def hollow_out(model: Any, path: str, missing: Iterable[str]) -> None:
    """Make a model on the meta device one in host memory whose parameters are hollow.

    Buffers, and the parameters that no file has, are made as transformers makes them in a model that it reads whole, with the
    same draws.

    Args:
        model: read with `device_map={"": "meta"}`.
        path: its folder.
        missing: names of parameters that are not in the files.
    """
    missing = {*missing}
    _tie_equal(model, path)
    made: dict[int, nn.Parameter] = {}
    for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
        if id(parameter) not in made:
            made[id(parameter)] = _made(parameter, hollow=name not in missing)
        put(model, name, made[id(parameter)])
    for name, buffer in [*model.named_buffers(remove_duplicate=False)]:
        put(model, name, torch.empty_like(buffer, device="cpu"))
    _read_buffers(model, path)
    for module in model.modules():
        module._is_hf_initialized = False  # what is made is marked itself
    model.initialize_weights()


def own_names(model: Any) -> set[str]:
    """All names that the model has for what files hold, also where two are one tensor."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} | {*persistent_buffers(model)}


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a parameter or buffer in its place."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        setattr(module, last, tensor)
    else:
        module._buffers[last] = tensor


def _made(parameter: torch.Tensor, *, hollow: bool) -> nn.Parameter:
    if not hollow:
        return nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad)
    one = torch.zeros((), dtype=parameter.dtype)
    made = nn.Parameter(one.expand(parameter.shape), requires_grad=parameter.requires_grad)
    setattr(made, MARK, True)
    made._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark: nothing is drawn for it
    return made


def _read_buffers(model: Any, path: str) -> None:
    kept = persistent_buffers(model)
    weights = FileWeights(model, path, own_names(model))
    for group in weights.groups(kept):
        for name, tensor in weights.read(group).items():
            kept[name].copy_(tensor)
            kept[name]._is_hf_initialized = True  # type: ignore[attr-defined]


def _tie_equal(model: Any, path: str) -> None:
    """Where a file has both of two tensors that the config says are one, transformers ties them if they are equal."""
    weights = FileWeights(model, path, own_names(model))
    for name, other in model.all_tied_weights_keys.items():
        if model.get_parameter(name) is model.get_parameter(other):
            continue
        one, two = (weights.read(weights.groups([each])[0])[each] for each in (name, other))
        if torch.equal(one, two):
            put(model, name, model.get_parameter(other))
