"""A model's weights as files and engines know them, a bucket at a time: for publication, saving and checkpoints alike.

Under ZeRO-3 a bucket is all that is ever whole on a device, and only the rank that wants it keeps a copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.learner.adapters import ADAPTER, is_adapter, own_name
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.store.weights import encode_bucket, plan_buckets

SAVED_BUCKET_BYTES = 256 * 2**20

Named = Iterable[tuple[str, torch.Tensor]]


class PublishedWeights(Protocol):
    """Weights by their Hugging Face names."""

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Name and full shape of each weight, in a fixed order; tied weights once."""

    def bucket(self, names: Sequence[str]) -> AbstractContextManager[Named]:
        """Some weights, whole on every rank inside the block; all ranks must enter."""


class Whole:
    """A model whose parameters are its weights."""

    def __init__(self, model: TrainedModel) -> None:
        """Take the model."""
        self._model = model

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """See `PublishedWeights`."""
        return self._model.shapes()

    @contextmanager
    def bucket(self, names: Sequence[str]) -> Iterator[Named]:
        """See `PublishedWeights`."""
        with self._model.gathered(names):
            yield self._model.tensors(names)


class Merged:
    """A model with adapters: W + (alpha / rank) B A where a layer has some (arXiv:2106.09685, equation 3)."""

    def __init__(self, model: TrainedModel) -> None:
        """Take the model."""
        self._model = model
        names = [name for name, _ in model.shapes()]
        self._parameter = {own_name(name): name for name in names if not is_adapter(name)}
        self._adapters: dict[str, list[str]] = defaultdict(list)
        """Parameters of the adapters of each adapted weight."""
        for name in filter(is_adapter, names):
            self._adapters[f"{name.rpartition('.lora_')[0]}.weight"].append(name)

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """See `PublishedWeights`."""
        return [(own_name(name), shape) for name, shape in self._model.shapes() if not is_adapter(name)]

    @contextmanager
    def bucket(self, names: Sequence[str]) -> Iterator[Named]:
        """See `PublishedWeights`."""
        needed = [each for name in names for each in (self._parameter[name], *self._adapters.get(name, ()))]
        with self._model.gathered(needed), torch.no_grad():
            tensors = dict(self._model.tensors([self._parameter[name] for name in names]))
            # Made one by one, and only where somebody asks for them.
            yield ((name, self._merged(name, tensors[self._parameter[name]])) for name in names)

    def _merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if not self._adapters.get(name):
            return weight
        layer: Any = self._model.hugging_face.get_submodule(name.rpartition(".")[0])
        merged: torch.Tensor = weight + layer.get_delta_weight(ADAPTER).to(weight.dtype)
        return merged


def published(model: TrainedModel) -> PublishedWeights:
    """The form in which a model's weights leave the learner."""
    return Whole(model) if model.lora is None else Merged(model)


@dataclass(frozen=True)
class Publication:
    """How a model's versions go to the store: in which buckets, in which dtype."""

    weights: PublishedWeights
    dtype: torch.dtype
    buckets: list[list[str]]

    @classmethod
    def plan(cls, model: TrainedModel, *, dtype: torch.dtype, bucket_bytes: int) -> Publication:
        """Cut a model into buckets."""
        weights = published(model)
        return cls(weights, dtype, _buckets(weights.shapes(), dtype.itemsize, bucket_bytes))

    def table(self, number: int, *, mine: bool) -> tuple[pa.Table | None, dict[str, Any]]:
        """One bucket and a report of what is in it, on the rank that owns it; all ranks must call."""
        with self.weights.bucket(self.buckets[number]) as tensors:
            if not mine:
                return None, {"names": [], "bytes": 0}
            sent = [(name, tensor.to(self.dtype)) for name, tensor in tensors]
            return encode_bucket(sent), {
                "names": self.buckets[number],
                "bytes": sum(tensor.nbytes for _, tensor in sent),
            }


def collected(
    weights: PublishedWeights, names: Sequence[str], *, dtype: torch.dtype, keep: bool
) -> dict[str, torch.Tensor]:
    """Copies of some weights in host memory, gathered bucket by bucket; empty on ranks that do not keep them.

    Args:
        weights: the model's.
        names: which.
        dtype: of the copies.
        keep: whether this rank wants them; all ranks must call.
    """
    shapes, found = dict(weights.shapes()), dict[str, torch.Tensor]()
    for bucket in _buckets([(name, shapes[name]) for name in names], dtype.itemsize, SAVED_BUCKET_BYTES):
        with weights.bucket(bucket) as tensors:
            if keep:
                found |= {name: tensor.detach().to("cpu", dtype, copy=True) for name, tensor in tensors}
    return found


def _buckets(shapes: Sequence[tuple[str, torch.Size]], itemsize: int, bucket_bytes: int) -> list[list[str]]:
    sizes = [(name, int(np.prod(shape)) * itemsize) for name, shape in shapes]
    return plan_buckets(sizes, bucket_bytes=bucket_bytes)
