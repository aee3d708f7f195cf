from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.cluster.placement import engines_of, lay_out
from rlhf_dist.config import RLConfig


def config(placement: str = "disaggregated", **sections: dict[str, object]) -> RLConfig:
    cluster = {"placement": placement, **sections.pop("cluster", {})}
    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "cluster": cluster, **sections}
    return RLConfig.model_validate(tree)


def test_actors_ask_for_gpus_only_where_there_are_some() -> None:
    assert lay_out(config(learner={"ranks": 2}), gpus=False).totals() == (5.0, 0.0)
    assert lay_out(config(learner={"ranks": 2}), gpus=True).totals() == (0.0, 5.0)


@pytest.mark.parametrize(("cores", "slots", "threads"), [(8.0, 8.0, 8), (2.75, 2.0, 2), (0.5, 0.5, 1)])
def test_a_gpu_brings_its_part_of_the_nodes_cores(cores: float, slots: float, threads: int) -> None:
    made = lay_out(config(learner={"ranks": 2}, rollout={"tensor_parallel": 4}), gpus=True, cores=cores)
    assert [bundle["CPU"] for bundle in made.bundles] == [slots] * 4
    assert made.threads == threads
    (engine,) = made.of("rollout")
    assert engine.cpus == int(4 * cores), "of four GPUs"
    assert sum(made.totals()) <= 8 * (cores + 1), "eight GPUs have no more"
    assert lay_out(config(), gpus=False, cores=cores).threads is None


def test_who_shares_a_ranks_gpu_asks_ray_for_nothing() -> None:
    made = lay_out(
        config("colocated", learner={"ranks": 4}, rollout={"workers": 2, "tensor_parallel": 2}), gpus=True, cores=8
    )
    engines = [(place.bundle, place.shares) for place in made.of("rollout")]
    assert engines == [(0, (0, 1)), (2, (2, 3))]
    guests = [place for place in made.places if place.role not in ("learner", "store")]
    assert {(place.cpus, place.gpus) for place in guests} == {(0.0, 0.0)}
    assert made.totals() == (32.0, 4.0)


@pytest.mark.parametrize(("placement", "devices"), [("disaggregated", 6), ("hybrid", 4), ("colocated", 2)])
def test_placements_share_devices_as_they_say(placement: str, devices: float) -> None:
    made = config(placement, learner={"ranks": 2}, rollout={"workers": 2})
    assert lay_out(made, gpus=True).totals()[1] == devices
    assert lay_out(made, gpus=False).totals()[0] == devices


@given(
    placement=st.sampled_from(["disaggregated", "hybrid", "colocated"]),
    ranks=st.integers(1, 9),
    reward=st.integers(1, 9),
    reference=st.integers(1, 9),
    workers=st.integers(1, 9),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    gpus=st.booleans(),
)
def test_no_bundle_is_asked_for_more_than_it_has(
    placement: str, ranks: int, reward: int, reference: int, workers: int, share: float, gpus: bool
) -> None:
    made = lay_out(
        config(
            placement,
            learner={"ranks": ranks},
            scoring={"reward_workers": reward, "reference_workers": reference},
            rollout={"workers": min(workers, ranks) if placement == "colocated" else workers},
            cluster={"gpu_share": share},
        ),
        gpus=gpus,
    )
    assert len({place.name for place in made.places}) == len(made.places)
    for number, bundle in enumerate(made.bundles):
        inside = [place for place in made.places if place.bundle == number]
        assert sum(place.cpus for place in inside) <= bundle["CPU"] + 1e-9
        assert sum(place.gpus for place in inside) <= bundle.get("GPU", 0.0) + 1e-9
        assert inside, "a bundle for nobody"


def test_an_engine_is_one_actor_with_all_its_gpus_so_it_never_leaves_its_node() -> None:
    (place,) = lay_out(config(rollout={"tensor_parallel": 4}), gpus=True).of("rollout")
    assert (place.gpus, place.bundle) == (4.0, None)


def test_a_scorer_whose_models_are_cut_has_all_its_gpus_in_one_bundle_so_on_one_node() -> None:
    rules: dict[str, Any] = {"reward": "pkg:function", "learner": {"critic": "value_head"}}
    made = lay_out(config(**rules, scoring={"tensor_parallel": 4}), gpus=True, cores=2)
    (reference,), (reward,) = made.of("reference"), made.of("reward")
    assert (reference.gpus, made.bundles[reference.bundle]) == (4.0, {"CPU": 8.0, "GPU": 4.0})
    assert reward.gpus == 1.0, "no model, nothing to cut"
    plain = lay_out(config(**rules), gpus=True, cores=2)
    rollout = config().rollout
    assert made.needs(rollout)["processes"] == plain.needs(rollout)["processes"] + 4
    assert made.totals()[1] == plain.totals()[1] + 3


def test_the_store_goes_where_the_first_learner_is() -> None:
    made = lay_out(config(), gpus=True)
    assert made.of("store")[0].bundle == made.of("learner")[0].bundle


def test_only_the_fewest_workers_are_needed_to_start() -> None:
    made = lay_out(config(rollout={"workers": {"min": 2, "max": 50}}), gpus=False)
    assert len(made.of("rollout")) == 2


def test_a_session_is_asked_for_every_process_and_for_the_gpus_of_every_engine() -> None:
    made = config(learner={"ranks": 3}, rollout={"workers": {"min": 2, "max": 9}, "tensor_parallel": 4})
    assert engines_of(made.rollout) == {"cpus": 2, "gpus": 8, "processes": 10}
    needs = lay_out(made, gpus=True, cores=1).needs(made.rollout)
    assert needs == {"cpus": 13.0, "gpus": 13.0, "processes": 1 + 3 + 2 + 10}
    assert engines_of(config().rollout) == {"cpus": 1, "gpus": 1, "processes": 1}


@pytest.mark.parametrize("placement", ["hybrid", "colocated"])
def test_scorers_of_all_roles_are_spread_over_the_devices(placement: str) -> None:
    made = lay_out(config(placement, learner={"ranks": 4}, scoring={"reference_workers": 2}), gpus=True)
    assert [place.bundle for role in ("reward", "reference") for place in made.of(role)] == [0, 1, 2]
    crowded = lay_out(config(placement, learner={"ranks": 2}, scoring={"reward_workers": 3}), gpus=True)
    assert sorted(place.bundle for role in ("reward", "reference") for place in crowded.of(role)) == [0, 0, 1, 1]
