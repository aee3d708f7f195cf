"""Weights that stay with the rank that gathered them, on its card or in its memory; engines anywhere read them there.

A bucket is an object of Ray's whose tensors never enter the object store (Ray Direct Transport). NIXL reads them by RDMA, NVLink,
shared memory or TCP, whatever lies between, and the owner takes no part: a reader that lags or dies holds up nobody, and an owner
that died is an error of those that read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_dist.errors import EnvironmentProblem, WeightError
from rlhf_dist.store.held import digest

if TYPE_CHECKING:
    import torch

NIXL = "nixl"
"""Ray's name of the transport."""
OF_OWNERS = {"enable_tensor_transport": True}
"""Options of actors that lend."""
ALIGNED = 64
"""Bytes at whose multiples tensors begin."""


class LentTensor(NamedTuple):
    """What a reader must know of one tensor before it has it."""

    name: str
    size: int
    """Bytes."""
    checksum: int
    """`held.digest`, computed where the tensor is."""


class Lent(NamedTuple):
    """A bucket, as others know it."""

    tensors: tuple[LentTensor, ...]
    memory: Any
    """Reference to the tensors, in the same order."""


def check_lending() -> None:
    """Refuse what could not lend, or read.

    Raises:
        EnvironmentProblem: says what is missing, and what to install.
    """
    try:
        import_module("nixl._api")
        import_module("ray.experimental.rdt.nixl_tensor_transport")
    except ImportError as error:
        missing = "ray[default]>=2.56" if "ray" in str(error) else "nixl"
        raise EnvironmentProblem(
            f"weights.transport sharded_rdt reads weights through Ray and NIXL, and {error}; `pip install '{missing}'` on all "
            "nodes, or take transport store"
        ) from error


def lend(tensors: Mapping[str, torch.Tensor]) -> Lent:
    """Copy tensors into memory of their device that is kept as long as somebody refers to the bucket; by its owner, an actor."""
    import ray
    import torch

    copies, needed = {}, sum(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values())
    device = next(iter(tensors.values())).device
    memory, start = torch.empty(needed, dtype=torch.uint8, device=device), 0
    for name, tensor in tensors.items():
        copies[name] = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies[name].copy_(tensor)
        start += -(-tensor.nbytes // ALIGNED) * ALIGNED
    told = tuple(LentTensor(name, copy.nbytes, digest(copy)) for name, copy in copies.items())
    return Lent(told, ray.put([*copies.values()], _tensor_transport=NIXL))


def borrow(buckets: Iterable[Lent], *, on_host: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of some buckets, each read from its owner when it is asked for, and checked.

    Args:
        buckets: which.
        on_host: they are to come into host memory, not onto a card as the owner's are.

    Raises:
        WeightError: the owner is gone, or something else came than was published.
    """
    import ray
    from ray.exceptions import RayError
    from ray.experimental import set_target_device_for_ref

    for bucket in buckets:
        try:
            if on_host:
                set_target_device_for_ref(bucket.memory, "cpu")
            found = ray.get(bucket.memory)
        except (RayError, RuntimeError) as error:  # NIXL's own are of no kind in common
            raise WeightError(
                f"weight {bucket.tensors[0].name} could not be read from the learner rank that holds it: {error}"
            ) from error
        for told, tensor in zip(bucket.tensors, found, strict=True):
            if (came := digest(tensor)) != told.checksum:
                raise WeightError(
                    f"weight {told.name}: digest {came:016x}; expected {told.checksum:016x}: its bytes changed on the way"
                )
            yield told.name, tensor
