"""Buckets as they come to an engine, whichever way they took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pyarrow as pa

from rlhf_dist.store.held import HeldTensor, held_rows, is_held, open_held
from rlhf_dist.store.lent import Lent, borrow
from rlhf_dist.store.weights import decode_bucket

if TYPE_CHECKING:
    import torch

Bucket: TypeAlias = pa.Table | Lent


class Arrived(NamedTuple):
    """A version's buckets by transport: of one run's, all but one of these are empty."""

    sent: list[pa.Table]
    """With their bytes, `weights.BUCKET`."""
    held: list[HeldTensor]
    """In memory beside this process."""
    lent: list[Lent]
    """With their owners."""


def sorted_out(buckets: Iterable[Bucket]) -> Arrived:
    """What came, by how it came."""
    buckets = [*buckets]
    lent = [each for each in buckets if isinstance(each, Lent)]
    tables = [each for each in buckets if not isinstance(each, Lent)]
    held = held_rows(table for table in tables if is_held(table))
    return Arrived([table for table in tables if not is_held(table)], held, lent)


def tensors_of(buckets: Iterable[Bucket]) -> Iterator[tuple[str, torch.Tensor]]:
    """What buckets have, or tell of, checked.

    Raises:
        WeightError: see `decode_bucket`, `open_held` and `borrow`.
    """
    arrived = sorted_out(buckets)
    yield from open_held(arrived.held)
    yield from borrow(arrived.lent)
    for table in arrived.sent:
        yield from decode_bucket(table)
