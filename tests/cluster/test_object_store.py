from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_dist.cluster import object_store
from rlhf_dist.cluster.object_store import FULL, GIB, LEAST_MIB, MIB, check_cluster, size_here
from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem


@pytest.fixture(params=[64 * MIB, 8 * GIB])
def free(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What is free in /dev/shm: what Docker gives, or a machine's."""
    monkeypatch.setattr(object_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=request.param))
    return int(request.param)


def test_a_small_run_gets_what_it_always_had_and_a_larger_one_as_much_as_stays_below_what_ray_spills_from(
    free: int,
) -> None:
    for needed in (0, 1 * MIB, FULL * LEAST_MIB * MIB):
        assert size_here(Cluster(), needed) == LEAST_MIB * MIB
    if free > GIB:
        assert size_here(Cluster(), 4 * GIB) == pytest.approx(4 * GIB / FULL)
    with pytest.raises(
        EnvironmentProblem,
        match=r"take 8\.00 GiB of shared .* expected 10\.00 GiB, but .* free in /dev/shm; give the cont",
    ):
        size_here(Cluster(), 8 * GIB)


def test_a_size_that_is_set_is_taken_unless_the_run_needs_more(free: int) -> None:
    assert size_here(Cluster(object_store_mib=100), 80 * MIB) == 100 * MIB
    with pytest.raises(
        EnvironmentProblem,
        match=r"expected 0\.10 GiB, but cluster\.object_store_mib is 0\.10 GiB; raise it, or leave it out: then it fits\.",
    ):
        size_here(Cluster(object_store_mib=100), 81 * MIB)


def test_ray_is_not_started_for_a_run_that_would_spill() -> None:
    import ray

    small = Cluster(object_store_mib=100)
    with (
        pytest.raises(EnvironmentProblem, match=r"^this run's weight versions and experience take 1\.00 GiB"),
        session(small, cpus=1, gpus=0, namespace="rlhf/none", store_bytes=GIB),
    ):
        raise AssertionError("it began")
    assert not ray.is_initialized()


def test_a_cluster_is_refused_whose_nodes_do_not_hold_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(size: int, alive: bool = True) -> dict[str, Any]:
        return {"NodeManagerAddress": str(size), "Alive": alive, "Resources": {"object_store_memory": float(size)}}

    monkeypatch.setattr("ray.nodes", lambda: [node(3 * GIB), node(2 * GIB), node(100 * GIB, alive=False)])
    check_cluster(4 * GIB)
    with pytest.raises(EnvironmentProblem, match=r"nodes have 5\.00 GiB together; start nodes with `ray start --obj"):
        check_cluster(4.1 * GIB)
