"""A version is checked once on a node. Engines and Ray's store: tests/integration, benchmarks/weight_sync.py."""

import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rlhf_dist.errors import WeightError
from rlhf_dist.rollout import checked
from rlhf_dist.rollout.checked import check_once
from rlhf_dist.store.weights import BUCKET, cells_of, check_buckets, encode_bucket, table_of

SIZE = 3 * 2**18
NAMES = ("a", "b", "c")


class Node:
    """Buckets in shared memory, and how often each was read."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.read = tmp_path / "checked", list[str]()
        self.memory = mmap.mmap(-1, len(NAMES) * SIZE)
        whole = pa.py_buffer(self.memory)
        self.tables = []
        for number, name in enumerate(NAMES):
            (cell,) = cells_of(encode_bucket([(name, torch.full((SIZE // 4,), float(number)))]))
            self.memory[number * SIZE : (number + 1) * SIZE] = cell.data.to_pybytes()
            self.tables.append(table_of(BUCKET, [cell._replace(data=whole.slice(number * SIZE, SIZE))]))
        monkeypatch.setattr(checked, "check_buckets", self._check)
        monkeypatch.setattr(checked, "check_bucket", lambda table: self._check([table]))

    def _check(self, tables: list[pa.Table]) -> None:
        self.read += [cell.name for table in tables for cell in cells_of(table)]
        check_buckets(tables)

    def check(self, version: int) -> list[str]:
        self.read.clear()
        check_once(self.tables, version, file=self.file)
        return sorted(self.read)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_who_comes_second_reads_nothing_and_another_version_is_read(node: Node) -> None:
    assert node.check(1) == [*NAMES]
    assert node.check(1) == []
    assert node.check(2) == [*NAMES]


def test_a_bucket_that_is_wrong_is_refused_by_everybody(node: Node) -> None:
    node.memory[SIZE + 5] = 7
    for _ in range(2):
        with pytest.raises(WeightError, match="weight b: checksum"):
            node.check(1)
    node.memory[SIZE + 5] = np.float32(1).tobytes()[1]
    assert "b" in node.check(1)
    assert node.check(1) == []


def test_private_memory_is_read_by_each(node: Node) -> None:
    table = encode_bucket([("private", torch.ones(5))])
    node.tables = [table]
    assert node.check(1) == node.check(1) == ["private"]


def hold(pipe: Connection, file: Path, place: int) -> None:
    with checked._opened(file) as number:
        checked.fcntl.lockf(number, checked.fcntl.LOCK_EX, checked.WIDTH, place)
        pipe.send("held")
        pipe.recv()


@pytest.fixture
def holder(node: Node) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that checks bucket `b` of version 1, and does not come to an end."""
    here, there = multiprocessing.Pipe()
    key = checked._key(node.tables[1], 1, checked.SharedMemory())
    assert key is not None
    place = int.from_bytes(key[:8], "little") % checked.PLACES * checked.WIDTH
    process = multiprocessing.get_context("fork").Process(target=hold, args=(there, node.file, place))
    process.start()
    assert here.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_who_waits_for_one_that_stopped_reads_for_itself(
    node: Node, holder: multiprocessing.process.BaseProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    assert node.check(1) == [*NAMES]
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert node.check(1) == ["b"], "nobody left a mark there, and the lock is gone with its process"
    assert node.check(1) == []
