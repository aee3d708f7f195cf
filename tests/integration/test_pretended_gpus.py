"""Which GPUs each actor sees, on a real Ray whose nodes pretend to have some; whole runs on such: test_rl_run.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.session import cores_per_gpu, has_gpus
from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ConfigError, EnvironmentProblem
from rlhf_dist.planning import attached
from rlhf_dist.planning.plan import Machines, make_plan
from rlhf_dist.stages.fitting import check_room_there
from rlhf_dist.stages.places import placed
from tests.integration.pretended import Actor, end, pretended_gpus
from tests.planning.test_memory import SIZES, config

NODES, GPUS, CPUS = 2, 2, 5
Seen = dict[str, list[tuple[str, str]]]
"""Of each actor its devices: node and number."""


def test_after_the_loss_of_a_node_its_ranks_are_elsewhere_and_the_others_where_they_were(
    ray_session: None, tmp_path: Path
) -> None:
    """Before the others, whose nodes would do as well."""
    made = config(cluster={"placement": "colocated"}, learner={"ranks": 3}, rollout={"workers": 3})
    layout = lay_out(made, gpus=True)
    assert not has_gpus()
    engines = layout.of("rollout")
    with (
        pretended_gpus(2, cpus=2),
        pretended_gpus(1, cpus=2) as lost,
        placed(layout, tmp_path, made.timeouts) as where,
    ):
        before = [where.bundles.spot(number) for number in range(3)]
        assert [spot.gpus for spot in before] == [("0",), ("1",), ("0",)], "the fullest node first"
        assert not where.bundles.settle(timeout_s=60), "nothing has moved"
        end(lost)
        with pretended_gpus(4, cpus=2):
            assert where.bundles.settle(timeout_s=60)
            after = [where.bundles.spot(number) for number in range(3)]
            assert after[:2] == before[:2]
            assert after[2].node not in {spot.node for spot in before}
            assert where.bundles.sight(engines[2])["CUDA_VISIBLE_DEVICES"] == after[2].gpus[0]


@pytest.fixture(scope="module")
def two_nodes(ray_session: None) -> Iterator[None]:
    with pretended_gpus(*[GPUS] * NODES, cpus=CPUS):
        yield


def seen(config: RLConfig, run_dir: Path) -> tuple[Seen, dict[str, dict[str, str]]]:
    """What the actors of a run see, nodes by the order in which they are met, and their variables."""
    import ray

    layout = lay_out(config, gpus=True, cores=cores_per_gpu())
    with placed(layout, run_dir, config.timeouts) as where:
        kind: Any = ray.remote(Actor)
        places = [place for place in layout.places if place.role != "store"]
        actors = [kind.options(**where.options(place, where.torch(1))).remote() for place in places]
        told = ray.get([actor.sees.remote() for actor in actors], timeout=120)
        for actor in actors:
            ray.kill(actor)
    names = {node: str(number) for number, node in enumerate(dict.fromkeys(node for node, _, _ in told))}
    devices = {
        place.name: [(names[node], gpu) for gpu in gpus.split(",")]
        for place, (node, gpus, _) in zip(places, told, strict=True)
    }
    return devices, {place.name: variables for place, (_, _, variables) in zip(places, told, strict=True)}


def planned(config: RLConfig) -> Seen:
    found: Seen = {}
    for seat in make_plan(config, Machines(NODES, GPUS, 80), SIZES).seats:
        for actor in seat.actors:
            found.setdefault(actor.name, []).append((str(seat.node), str(seat.number)))
    return found


def test_nodes_that_are_attached_to_are_planned_for_as_those_here(
    two_nodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = config(cluster={"address": "auto"}), list[str]()
    check_room_there(made, SIZES, told.append)
    assert told == ["Ray counts GPUs on this cluster, but torch finds none of them: everything is computed on CPUs"]
    monkeypatch.setattr(attached, "_own_memory", lambda: 80 * 10**9)
    assert attached.machines_there(timeout_s=60) == Machines(NODES, GPUS, 80, CPUS)
    check_room_there(made, SIZES, told.append)
    monkeypatch.setattr(attached, "_own_memory", lambda: 5 * 10**8)
    with pytest.raises(ConfigError, match=r"this run does not fit: node 0 device 0 \(learner-0\) needs"):
        check_room_there(made, SIZES, told.append)
    assert len(told) == 1


COLOCATED = {"cluster": {"placement": "colocated"}, "learner": {"ranks": 4}}
SPLIT = {"learner": {"ranks": 1}, "scoring": {"reference_on": "learner"}}


@pytest.mark.parametrize(
    "sections",
    [
        {**COLOCATED, "rollout": {"workers": 2, "tensor_parallel": 2}},
        {**SPLIT, "rollout": {"workers": 1, "tensor_parallel": 2}},
    ],
    ids=["colocated", "split"],
)
def test_every_actor_sees_the_gpus_of_the_plan(sections: dict[str, Any], two_nodes: None, tmp_path: Path) -> None:
    made = config(**sections)
    devices, variables = seen(made, tmp_path)
    assert devices == planned(made)
    assert {each["OMP_NUM_THREADS"] for each in variables.values()} == {str((CPUS - 1) // GPUS)}
    assert {each["PYTORCH_ALLOC_CONF"] for each in variables.values()} == {"expandable_segments:True"}


def test_an_engine_that_would_be_cut_over_nodes_is_refused_before_anything_starts(
    two_nodes: None, tmp_path: Path
) -> None:
    made = config(**{**COLOCATED, "rollout": {"workers": 1, "tensor_parallel": 4}})
    layout = lay_out(made, gpus=True, cores=cores_per_gpu())
    with (
        pytest.raises(EnvironmentProblem, match=r"rollout-0 would be cut over GPUs of 2 nodes \(learner-0 on"),
        placed(layout, tmp_path, made.timeouts),
    ):
        pass
