"""Tensors in memory of this process, and in memory that it shares. Other processes, and Ray's store: tests/integration."""

import mmap
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pytest
import torch

from rlhf_dist.rollout.places import MappedTensor, opened, places_of
from rlhf_dist.store.weights import Cell, cells_of, encode_bucket

BEFORE = 8192 + 64
"""Bytes of a shared file that are not ours."""
NAMED = {
    "matrix": torch.arange(12.0).view(3, 4),
    "scalar": torch.tensor(7.0),
    "half": torch.arange(5).bfloat16(),
    "large": torch.arange(100_000),
}
PRIVATE = [*cells_of(encode_bucket(NAMED.items()))]


class Shared(NamedTuple):
    """A file without a name, and tensors in it."""

    number: int
    memory: mmap.mmap
    cells: list[Cell]


@pytest.fixture
def shared() -> Iterator[Shared]:
    number = os.memfd_create("test")
    os.truncate(number, BEFORE + sum(cell.data.size for cell in PRIVATE))
    memory = mmap.mmap(number, 0)
    whole, end, cells = pa.py_buffer(memory), BEFORE, []
    for cell in PRIVATE:
        memory[end : end + cell.data.size] = cell.data.to_pybytes()
        cells.append(cell._replace(data=whole.slice(end, cell.data.size)))
        end += cell.data.size
    yield Shared(number, memory, cells)
    os.close(number)


def equal(places: Sequence[MappedTensor]) -> None:
    found = dict(opened(places))
    assert [*found] == [*NAMED]
    for name, tensor in NAMED.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_private_memory_is_found_in_one_file_which_is_gone_afterwards() -> None:
    with places_of(PRIVATE) as places:
        equal(places)
        assert len({each.file for each in places}) == 1
    with pytest.raises(FileNotFoundError):
        equal(places)


def test_shared_memory_is_found_where_it_is(shared: Shared) -> None:
    with places_of([PRIVATE[0], *shared.cells[1:]]) as places:
        equal(places)
        assert [os.stat(each.file).st_ino == os.fstat(shared.number).st_ino for each in places] == [
            False,
            True,
            True,
            True,
        ]
        assert places[1].offset == BEFORE + PRIVATE[0].data.size
        large = dict(opened(places))["large"]
        shared.memory[places[-1].offset] = 5
        assert large[0] == 5, "it was copied"


def test_shared_memory_that_nobody_holds_open_is_copied(shared: Shared) -> None:
    with open(os.devnull, "rb") as other:
        os.dup2(other.fileno(), shared.number)
    with places_of(shared.cells) as places:
        equal(places)


def test_readers_cannot_write(shared: Shared) -> None:
    with places_of(shared.cells) as places, open(places[0].file, "rb") as file, pytest.raises(PermissionError):
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
