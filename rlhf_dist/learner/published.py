"""A model's weights as files and engines know them, a bucket at a time: for publication, saving and checkpoints alike.

Under ZeRO-3 a bucket is all that is ever whole on a device, and only the rank that wants it keeps a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn
from torch.func import functional_call

from rlhf_dist.learner.adapters import ADAPTER, adapted_layers, is_adapter, own_name
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models.file_names import persistent_buffers
from rlhf_dist.store.weights import Moved, plan_buckets

SAVED_BUCKET_BYTES = 256 * 2**20

Named = Iterable[tuple[str, torch.Tensor]]


class PublishedWeights(Protocol):
    """Weights by the names that the Hugging Face model itself has for them."""

    adapted: frozenset[str]
    """Names of the weights that adapters change; none without adapters."""

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Name and full shape of each weight, in a fixed order; tied weights once, persistent buffers last."""

    def bucket(
        self, names: Sequence[str], dtype: torch.dtype, *, moved: list[Moved] | None = None
    ) -> AbstractContextManager[Named]:
        """Some weights, whole on every rank inside the block; all ranks must enter.

        Parameters come in `dtype`, and buffers, which files keep as they are, in their own. `moved` is told what rounding leaves
        of each adapted weight's change, as it is handed out.
        """


class Whole:
    """A model whose parameters are its weights."""

    adapted: frozenset[str] = frozenset()

    def __init__(self, model: TrainedModel) -> None:
        """Take the model."""
        self._model, self._buffers = model, persistent_buffers(model.hugging_face)

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """See `PublishedWeights`."""
        return [*self._model.shapes(), *((name, buffer.shape) for name, buffer in self._buffers.items())]

    @contextmanager
    def bucket(self, names: Sequence[str], dtype: torch.dtype, *, moved: list[Moved] | None = None) -> Iterator[Named]:
        """See `PublishedWeights`."""
        parameters = [name for name in names if name not in self._buffers]
        with self._model.gathered(parameters):
            cast = ((name, tensor.to(dtype)) for name, tensor in self._model.tensors(parameters))
            yield chain(cast, _of_names(self._buffers, names))


class Merged:
    """A model with adapters: W + (alpha / rank) B A where a layer has some (arXiv:2106.09685, equation 3).

    Product and sum are made in fp32 and rounded once: in bf16 a change of less than half a spacing of W would be lost twice.
    """

    def __init__(self, model: TrainedModel) -> None:
        """Take the model."""
        self._model = model
        self._buffers = {own_name(name): buffer for name, buffer in persistent_buffers(model.hugging_face).items()}
        names = [name for name, _ in model.shapes()]
        self._parameter = {own_name(name): name for name in names if not is_adapter(name)}
        self._layers = adapted_layers(model.hugging_face)
        self.adapted = frozenset(self._layers)
        self._adapters = {
            name: [each for each in names if is_adapter(each) and each.startswith(f"{layer}.lora_")]
            for name, layer in self._layers.items()
        }
        """Parameters of the adapters of each adapted weight."""

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """See `PublishedWeights`."""
        parameters = [(own_name(name), shape) for name, shape in self._model.shapes() if not is_adapter(name)]
        return [*parameters, *((name, buffer.shape) for name, buffer in self._buffers.items())]

    @contextmanager
    def bucket(self, names: Sequence[str], dtype: torch.dtype, *, moved: list[Moved] | None = None) -> Iterator[Named]:
        """See `PublishedWeights`."""
        parameters = [name for name in names if name not in self._buffers]
        needed = [each for name in parameters for each in (self._parameter[name], *self._adapters.get(name, ()))]
        with self._model.gathered(needed), torch.no_grad():
            tensors = dict(self._model.tensors([self._parameter[name] for name in parameters]))
            # Made one by one, and only where somebody asks for them.
            merged = ((name, self._merged(name, tensors[self._parameter[name]], dtype, moved)) for name in parameters)
            yield chain(merged, _of_names(self._buffers, names))

    def _merged(self, name: str, weight: torch.Tensor, dtype: torch.dtype, moved: list[Moved] | None) -> torch.Tensor:
        if name not in self._layers:
            return weight.to(dtype)
        change = self._change(name, weight)
        sent = (weight.float() + change).to(dtype)
        if moved is not None:
            moved.append(_moved(weight.to(dtype), sent, change))
        return sent

    def _change(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What a weight's adapters add to it, float32."""
        layer: Any = self._model.hugging_face.get_submodule(self._layers[name])
        tensors = {**dict(self._model.tensors(self._adapters[name])), self._parameter[name]: weight}
        inside = {f"layer.{key.removeprefix(f'{self._layers[name]}.')}": each.float() for key, each in tensors.items()}
        change: torch.Tensor = functional_call(_Change(layer), inside, ())
        return change


class _Change(nn.Module):
    """What a layer's adapters add to its weight, as a function of both; peft computes it in the dtype that these have."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Any:
        return self.layer.get_delta_weight(ADAPTER)  # type: ignore[operator]


def _moved(before: torch.Tensor, after: torch.Tensor, change: torch.Tensor) -> Moved:
    arrived = after.float() - before.float()
    pairs = ((change, change), (arrived, arrived), (arrived, change))
    return Moved(*(float((one * two).sum(dtype=torch.float64)) for one, two in pairs))


def _of_names(buffers: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[tuple[str, torch.Tensor]]:
    return [(name, buffers[name]) for name in names if name in buffers]


def published(model: TrainedModel) -> PublishedWeights:
    """The form in which a model's weights leave the learner."""
    return Whole(model) if model.lora is None else Merged(model)


def collected(
    weights: PublishedWeights, names: Sequence[str], *, dtype: torch.dtype, keep: bool
) -> dict[str, torch.Tensor]:
    """Copies of some weights in host memory, gathered bucket by bucket; empty on ranks that do not keep them.

    Args:
        weights: the model's.
        names: which.
        dtype: of the copies, but for buffers.
        keep: whether this rank wants them; all ranks must call.
    """
    shapes, found = dict(weights.shapes()), dict[str, torch.Tensor]()
    sizes = [(name, shapes[name].numel() * dtype.itemsize) for name in names]
    for bucket in plan_buckets(sizes, bucket_bytes=SAVED_BUCKET_BYTES):
        with weights.bucket(bucket, dtype) as tensors:
            if keep:
                found |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}
    return found
