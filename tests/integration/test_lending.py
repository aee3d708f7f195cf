"""Weights that stay with their owners: read through Ray's direct transport and NIXL, which on CPUs takes shared memory or TCP."""

import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlhf_dist.errors import WeightError
from rlhf_dist.store.actor import Store
from rlhf_dist.store.arrived import tensors_of
from rlhf_dist.store.deltas import whole_tables
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.lent import OF_OWNERS, Lent, lend
from rlhf_dist.store.weights import KEPT_VERSIONS, Sent
from tests.runs import Folders, metrics, train

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(find_spec("nixl") is None, reason="needs NIXL (pip install nixl)"),
    pytest.mark.usefixtures("ray_session"),
]

BUCKETS, SIZE = 3, 2**20
READ_S = 90.0
"""More than Ray waits for a transfer."""


class Owner:
    """A learner rank's part: of each version its buckets, full of the version's number."""

    def __init__(self, number: int) -> None:
        self.number, self.version = number, 0

    def process(self) -> int:
        return os.getpid()

    def weight_buckets(self, partial: bool, base: Any) -> Iterator[Lent | Sent]:
        sent, self.version = Sent(), self.version + 1
        for bucket in range(BUCKETS):
            tensors = {
                f"{self.number}.{bucket}.a": torch.full((3, 5), float(self.version)),
                f"{self.number}.{bucket}.b": torch.full((SIZE,), self.version, dtype=torch.bfloat16),
            }
            sent.names.append([*tensors])
            yield lend(tensors)
        yield sent

    def objects(self) -> int:
        """Those that are kept for others."""
        return int(ray._private.worker.global_worker.rdt_manager.rdt_store.get_num_objects())


class Reader:
    """An engine's part."""

    def process(self) -> int:
        return os.getpid()

    def pull(self, store: Any, nap_s: float = 0.0) -> dict[str, set[float]]:
        """The values of each tensor of the version that is the newest at the beginning."""
        (manifest,) = ray.get(store.newest_weights.remote(False))
        found = {}
        for name, tensor in tensors_of(whole_tables(manifest, lambda refs: ray.get(list(refs)))):
            found[name] = set(tensor.float().unique().tolist())
            time.sleep(nap_s)
        assert found.keys() == set(manifest.names)
        return found


class Plane:
    """A store, two owners and two readers."""

    def __init__(self) -> None:
        kind = ray.remote(num_cpus=0)(Owner)
        self.owners = [kind.options(**OF_OWNERS).remote(number) for number in range(2)]
        self.readers: list[Any] = [ray.remote(num_cpus=0)(Reader).remote() for _ in range(2)]
        made: Any = ray.remote(num_cpus=0)(Store)
        self.store = made.remote(ExperienceIndex(batch_rows=1, scorers=()))
        self.version = 0

    def publish(self, versions: int = 1) -> None:
        for _ in range(versions):
            self.version += 1
            ray.get(self.store.publish.remote(self.version, self.owners, None), timeout=READ_S)

    def values(self, pulled: Any) -> set[float]:
        found = ray.get(pulled, timeout=READ_S)
        assert len(found) == 2 * BUCKETS * len(self.owners)
        return set().union(*found.values())

    def close(self) -> None:
        for actor in (*self.owners, *self.readers, self.store):
            ray.kill(actor)


@pytest.fixture
def plane() -> Iterator[Plane]:
    made = Plane()
    yield made
    made.close()


def test_readers_have_each_version_and_owners_keep_what_the_store_names(plane: Plane) -> None:
    for version in range(1, 6):
        plane.publish()
        pulls = [reader.pull.remote(plane.store) for reader in plane.readers]
        assert [plane.values(pull) for pull in pulls] == [{float(version)}] * 2
    deadline = time.monotonic() + 20
    while (kept := ray.get([owner.objects.remote() for owner in plane.owners])) != [KEPT_VERSIONS * BUCKETS] * 2:
        assert time.monotonic() < deadline, kept
        time.sleep(0.1)


def test_a_reader_that_lags_two_versions_reads_the_one_that_it_was_told_of(plane: Plane) -> None:
    plane.publish()
    lagging = plane.readers[0].pull.remote(plane.store, 0.5)
    time.sleep(1.0)
    plane.publish(KEPT_VERSIONS + 1)
    assert plane.values(plane.readers[1].pull.remote(plane.store)) == {float(plane.version)}
    assert plane.values(lagging) == {1.0}


def test_a_killed_reader_holds_up_nobody(plane: Plane) -> None:
    plane.publish()
    process = ray.get(plane.readers[0].process.remote())
    lost = plane.readers[0].pull.remote(plane.store, 0.5)
    time.sleep(1.0)
    os.kill(process, signal.SIGKILL)
    plane.publish(2)
    assert plane.values(plane.readers[1].pull.remote(plane.store)) == {float(plane.version)}
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(lost, timeout=READ_S)


def test_a_killed_owner_is_an_error_of_those_that_read_and_what_comes_after_it_arrives(plane: Plane) -> None:
    plane.publish()
    process = ray.get(plane.owners[1].process.remote())
    reading = plane.readers[0].pull.remote(plane.store, 0.5)
    time.sleep(1.0)
    os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WeightError, match="could not be read from the learner rank that holds it"):
        ray.get(reading, timeout=READ_S)
    assert time.monotonic() - began < READ_S
    plane.owners = [plane.owners[0]]
    plane.publish()
    assert plane.values(plane.readers[0].pull.remote(plane.store)) == {2.0}


def test_a_run_whose_weights_stay_with_the_ranks_gives_the_metrics_of_one_that_sends_them(
    plain: Path, folders: Folders, tmp_path: Path
) -> None:
    lent = folders.config(
        prompts={"held_out": str(folders.prompts), "held_out_limit": 4},
        checkpoint_every=1,
        weights={"transport": "sharded_rdt"},
    )
    assert metrics(train(lent, tmp_path / "lent")) == metrics(plain)
