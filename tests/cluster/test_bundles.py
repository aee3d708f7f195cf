"""Who is handed which bundle, wherever Ray put them; on a real cluster: tests/integration/test_pretended_gpus.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.cluster.bundles import Spot, check_engines, ordered
from rlhf_dist.cluster.placement import Layout, lay_out
from rlhf_dist.errors import EnvironmentProblem
from tests.cluster.test_placement import config


def spot(node: int, gpu: int) -> Spot:
    return Spot(f"id{node}", f"10.0.0.{node}", (str(gpu),))


def colocated(ranks: int, parallel: int) -> Layout:
    rollout = {"workers": ranks // parallel, "tensor_parallel": parallel}
    return lay_out(config("colocated", learner={"ranks": ranks}, rollout=rollout), gpus=True)


@given(spots=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=16, unique=True))
def test_the_ranks_of_a_node_are_together_and_in_the_order_of_its_gpus(spots: list[tuple[int, int]]) -> None:
    found = {number: spot(*where) for number, where in enumerate(spots)}
    order = ordered(colocated(len(spots), 1), found, {}, [*found])
    assert sorted(order) == sorted(order.values()) == [*range(len(spots))]
    nodes = [found[order[rank]].node for rank in range(len(spots))]
    assert nodes == sorted(nodes, key=lambda node: (-nodes.count(node), node)), "the fullest node first"
    for node in set(nodes):
        gpus = [int(found[order[rank]].gpus[0]) for rank in range(len(spots)) if nodes[rank] == node]
        assert gpus == sorted(gpus)


def test_who_stays_keeps_the_number_and_those_of_a_lost_node_are_dealt_out_anew() -> None:
    layout = colocated(4, 1)
    found = {0: spot(1, 1), 1: spot(2, 0), 2: spot(1, 0), 3: spot(2, 1)}
    order = ordered(layout, found, {}, [*found])
    assert order == {0: 2, 1: 0, 2: 1, 3: 3}
    later = {**found, 0: spot(3, 0), 2: spot(3, 1)}
    assert order | ordered(layout, later, order, [0, 2]) == {0: 0, 1: 2, 2: 1, 3: 3}


def test_bundles_that_are_not_alike_do_not_change_places() -> None:
    made = lay_out(config(learner={"ranks": 2}, scoring={"tensor_parallel": 2}), gpus=True)
    assert [bundle["GPU"] for bundle in made.bundles] == [1, 1, 2, 2]
    found = {0: spot(2, 3), 1: spot(2, 1), 2: spot(9, 0), 3: spot(1, 0)}
    assert ordered(made, found, {}, [*found]) == {0: 1, 1: 0, 2: 3, 3: 2}


def test_an_engine_over_gpus_of_two_nodes_is_refused() -> None:
    layout = colocated(4, 2)
    check_engines(layout, {0: spot(1, 0), 1: spot(1, 1), 2: spot(2, 0), 3: spot(2, 1)})
    wrong = {0: spot(1, 0), 1: spot(1, 1), 2: spot(1, 2), 3: spot(2, 0)}
    with pytest.raises(
        EnvironmentProblem, match=r"rollout-1 .*learner-2 on 10.0.0.1, learner-3 on 10.0.0.2.* multiple"
    ):
        check_engines(layout, wrong)
