import pytest

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.cost import GPUS
from rlhf_dist.planning.memory import ModelSize
from rlhf_dist.planning.plan import CONTEXT_GIB, Machines, Plan, Seat, make_plan

SIZE = ModelSize(10**6, layers=4, hidden=64, intermediate=176, attention=64, kv_elements=512, vocabulary=1000)

CONTEXT = CONTEXT_GIB * 2**30
MEMORY = {
    "learner": {"parameters": 10e9, "optimiser": 30e9, "activations": 7e9, "logits": 1e9},
    "rollout": {"parameters": 5e9, "KV cache": 25e9},
    "reward": {"parameters": 2e9},
    "reference": {"parameters": 3e9},
}


def plan(placement: str, capacity: float = 80e9) -> Plan:
    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "cluster": {"placement": placement}}
    layout = lay_out(RLConfig.model_validate(tree), gpus=True)
    device = Seat(0, 0, actors=[place for place in layout.places if place.role != "store"])
    return Plan(Machines(1, 1, 80), layout, [device], MEMORY, capacity, {"gen": 1.0}, GPUS[80], 1)


def test_a_shared_gpu_holds_what_learners_keep_beside_the_engine_that_wakes() -> None:
    shared = plan("colocated")
    # While the engine generates, 40 GB of the learner stay; its step (8 GB) and the engine (30 GB) take turns.
    assert shared.used(shared.seats[0]) == 4 * CONTEXT + 40e9 + 30e9 + 2e9 + 3e9


def test_what_does_not_fit_is_named_with_what_would_help() -> None:
    assert plan("colocated").problems() == []
    (told,) = plan("colocated", capacity=77e9).problems()
    assert told.startswith("node 0 device 0 (learner-0, reward-0, reference-0, rollout-0) needs 72.2 GiB of 71.7")
    assert "learner.zero_stage 3" in told


def test_a_scorer_over_several_gpus_sits_on_as_many_of_one_node() -> None:
    tree = {
        "policy": "a",
        "reward": "pkg:function",
        "prompts": {"path": "p"},
        "scoring": {"tensor_parallel": 2},
        "algorithm": {"method": "rloo"},
        "rollout": {"samples_per_prompt": 2},
    }
    config = RLConfig.model_validate(tree)
    sizes = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)
    made = make_plan(config, Machines(2, 3, 80), sizes)
    seats = {(seat.node, seat.number): [actor.name for actor in seat.actors] for seat in made.seats}
    assert seats == {
        (0, 0): ["learner-0"],
        (0, 1): ["reward-0"],
        (0, 2): ["rollout-0"],
        (1, 0): ["reference-0"],
        (1, 1): ["reference-0"],
    }
    with pytest.raises(ConfigError, match="those of an engine or a scoring worker within one node"):
        make_plan(config, Machines(9, 1, 80), sizes)
