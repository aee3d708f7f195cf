"""The weights of a hollow module (`models.hollow`) are read: into every rank's memory, or each rank's share of each by itself.

Shared out, one rank reads a group of weights and the others receive each; all that is ever whole in a rank is one weight, and
where it is read one group of those that are converted together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from rlhf_dist.learner.adapters import is_adapter, own_name
from rlhf_dist.models.file_names import persistent_buffers
from rlhf_dist.models.hollow import is_hollow, put
from rlhf_dist.models.loading import odd_weights, refuse_odd
from rlhf_dist.models.stored import FileWeights
from rlhf_dist.models.wrapped import WrappedModel

Share = Callable[[nn.Parameter], None]
"""Makes of a parameter, whole on rank 0 and of its shape on others, one of which each rank has a share; all ranks call it."""


@torch.no_grad()
def fill(module: WrappedModel, dtype: torch.dtype, *, share: Share | None) -> None:
    """Read a hollow module's weights.

    Args:
        module: wrapped, with its adapters.
        dtype: of all parameters afterwards.
        share: how a weight is shared out; None: every rank has all of them, as pages of the files where the dtype is theirs.

    Raises:
        ModelError: there are weights that are not finite; on all ranks.
    """
    path, odd = module.inner.config._name_or_path, list[str]()
    reads = share is None or torch.distributed.get_rank() == 0
    for name, parameter in _read(module.inner, path, dtype, reads=reads):
        if reads:
            odd += odd_weights([(name, parameter)])
        if share is not None:
            share(parameter)
    if share is not None:
        found = [odd]
        torch.distributed.broadcast_object_list(found, src=0)
        odd = found[0]
    refuse_odd(path, odd)
    for parameter in module.parameters():
        if share is not None and not hasattr(parameter, "ds_id"):  # adapters, heads that were drawn
            parameter.data = parameter.data.to(dtype)
            share(parameter)
    if share is not None:
        device = next(module.parameters()).device
        for buffer in module.buffers():
            buffer.data = buffer.data.to(device)


def sharing(settings: dict[str, Any]) -> Share:
    """Sharing out as ZeRO-3 does it with DeepSpeed's settings."""
    import deepspeed

    first: list[Any] = []

    def share(parameter: nn.Parameter) -> None:
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
        else:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=settings)
            first.append(parameter)

    return share


def _read(model: Any, path: str, dtype: torch.dtype, *, reads: bool) -> Iterator[tuple[str, nn.Parameter]]:
    """Each weight in its place, with its name, one by one in an order that all ranks have; empty on ranks that do not read."""
    everything = [*model.named_parameters(remove_duplicate=False)]
    places = {own_name(name): name for name, _ in everything if not is_adapter(name)}
    weights = FileWeights(model, path, {*places, *map(own_name, persistent_buffers(model))})
    for group in weights.groups(places):
        found = weights.read(group) if reads else {}
        for name in weights.told(group):
            hollow = model.get_parameter(places[name]) if name in places else None
            if hollow is None or not is_hollow(hollow):
                continue  # a buffer, the other of two that are tied, a head that was drawn anew
            full = found.pop(name).to(dtype) if reads else torch.empty(hollow.shape, dtype=dtype)
            parameter = nn.Parameter(full, requires_grad=hollow.requires_grad)
            for place, each in everything:
                if each is hollow:
                    put(model, place, parameter)
            yield name, parameter
