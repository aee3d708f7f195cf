from dataclasses import replace

import pytest

from rlhf_dist.planning.weight_seconds import GB, Way, dominant, publish_and_pull, steps, transports

SPLIT = Way(
    ranks=16, learner_nodes=2, zero_stage=3, engine_nodes=2, tensor_parallel=8, shared_devices=False, network=50 * GB
)
BYTES_70B = 141 * GB


def total(way: Way, transport: str = "object store", num_bytes: float = BYTES_70B) -> float:
    return sum(publish_and_pull(steps(num_bytes, way, transport), gpus=way.gpus))


def test_ranks_share_all_but_the_gathering_also_under_zero_3() -> None:
    few, many = (
        steps(BYTES_70B, replace(SPLIT, ranks=ranks, learner_nodes=ranks // 8), "object store") for ranks in (8, 32)
    )
    for step in ("GPU to host", "copy to the object store"):
        assert many[step] == pytest.approx(few[step] / 4), step
    assert "gather" not in steps(BYTES_70B, replace(SPLIT, zero_stage=2), "object store")
    assert "gather" not in steps(BYTES_70B, replace(SPLIT, ranks=1, learner_nodes=1), "object store")
    slow, fast = (steps(BYTES_70B, replace(SPLIT, network=rate * GB), "object store")["gather"] for rate in (12.5, 400))
    assert slow == pytest.approx(BYTES_70B / 2 / 12.5e9), "half of it comes from the other node"
    assert fast == pytest.approx(BYTES_70B * 15 / 16 / 150e9)


def test_the_network_is_asked_once_per_node_and_not_at_all_beside_the_learner() -> None:
    one, two = (
        steps(BYTES_70B, replace(SPLIT, engine_nodes=nodes), "object store")["network (Ray)"] for nodes in (1, 2)
    )
    eight = steps(BYTES_70B, replace(SPLIT, engine_nodes=8), "object store")["network (Ray)"]
    assert (one, two, eight) == (one, one, pytest.approx(4 * one)), "two learner nodes serve two others at once"
    assert "network (Ray)" not in steps(BYTES_70B, replace(SPLIT, engine_nodes=0), "object store")


def test_every_transport_takes_less_where_it_can_be_taken_at_all() -> None:
    assert transports(SPLIT) == ["object store", "sharded_rdt"]
    shared = replace(SPLIT, engine_nodes=0, shared_devices=True)
    assert transports(shared) == ["object store", "cuda_ipc", "sharded_rdt"]
    assert transports(replace(SPLIT, gpus=False)) == ["object store"]
    assert total(SPLIT, "sharded_rdt") < total(SPLIT) / 4
    whole = steps(BYTES_70B, replace(SPLIT, tensor_parallel=1), "sharded_rdt")
    assert "host to GPU" not in whole
    assert "host to GPU" in steps(BYTES_70B, SPLIT, "sharded_rdt"), "one process reads for all"
    assert total(shared, "cuda_ipc") < total(shared) / 5


def test_what_takes_longest_is_named() -> None:
    assert dominant(steps(BYTES_70B, SPLIT, "object store")) == "network (Ray)"
    alone = Way(1, 1, 2, 0, 1, False, 50 * GB)
    assert dominant(steps(16 * GB, alone, "object store")) == "host to GPU"
    overlapping = {"gather": 1.0, "hash": 2.0, "copy to the object store": 3.0, "check": 4.0}
    assert publish_and_pull(overlapping, gpus=True) == (1 + 3, 4)
    assert publish_and_pull(overlapping, gpus=False) == (1 + 2 + 3, 4)
