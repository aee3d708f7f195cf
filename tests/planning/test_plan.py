from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.config import DPOConfig, EvaluateConfig, Job, RewardConfig, RLConfig, SFTConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.advice import advice
from rlhf_dist.planning.cost import GPUS
from rlhf_dist.planning.plan import Machines, Plan, Seat, make_plan, make_plans
from rlhf_dist.planning.processes import CONTEXT_BYTES
from rlhf_dist.planning.roles import sizes_of
from rlhf_dist.planning.scenes import Scene
from rlhf_dist.planning.sizes import ModelSize

KEEPS = {"parameters": 10e9, "optimiser": 30e9, "held (host)": 50e9}
MEMORY = {
    "learner": {"kept": KEEPS, "update": KEEPS | {"activations": 7e9, "head": 1e9}, "generate": {"parameters": 10e9}},
    "rollout": {"kept": {"asleep": 2e9}, "generate": {"parameters": 5e9, "KV cache": 25e9}},
    "reward": {"kept": {"parameters": 2e9}},
    "reference": {"kept": {"parameters": 3e9}},
}
SIZE = ModelSize(
    parameters=8 * 10**9,
    layers=32,
    hidden=4096,
    intermediate=14336,
    attention=4096,
    kv_elements=65_536,
    vocabulary=128_256,
)


def plan(capacity: float = 80e9) -> Plan:
    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "cluster": {"placement": "colocated"}}
    layout = lay_out(RLConfig.model_validate(tree), gpus=True)
    device = Seat(0, 0, actors=[place for place in layout.places if place.role != "store"])
    return Plan(Machines(1, 1, 80), Scene("", layout, MEMORY), [device], capacity, {"gen": 1.0}, GPUS[80], 1)


def test_a_device_is_as_full_as_in_its_fullest_phase_and_host_memory_is_not_its() -> None:
    shared = plan()
    (actors,) = shared.devices().values()
    # While learners train, 48 GB are theirs, and the engine sleeps; while it generates, 10 GB are left of them.
    assert shared.peak(actors) == ("update", pytest.approx(4 * CONTEXT_BYTES + 48e9 + 2e9 + 2e9 + 3e9))
    assert shared.host_bytes()[0] > 50e9


def test_what_does_not_fit_is_named_with_its_phase_and_its_largest_part() -> None:
    assert plan().problems() == []
    (told,) = plan(capacity=57e9).problems()
    assert told.startswith(
        "node 0 device 0 (learner-0, reward-0, reference-0, rollout-0) needs 53.6 GiB of 53.1 while it"
    )
    assert "while it is to update, learner-0 most: 45.3 GiB" in told


def rl(**sections: object) -> RLConfig:
    learner = {"precision": "bf16", "zero_stage": 3, "gradient_checkpointing": True, "micro_batch_tokens": 8192}
    sections["learner"] = {**learner, **sections.get("learner", {})}  # type: ignore[dict-item]
    return RLConfig.model_validate({"policy": "a", "reward": "b", "prompts": {"path": "p"}, **sections})


def test_advice_is_what_makes_the_plan_fit() -> None:
    sizes = {"policy": SIZE, "critic": SIZE, "reference": SIZE, "reward": SIZE}
    machines = Machines(2, 8, 80)
    assert advice(rl(learner={"ranks": 8}), machines, sizes) == []
    # A reference of 60 GiB on a card beside a reward model of as much: no batch size helps, the learner's ranks do.
    large = {**sizes, "reference": ModelSize(**{**vars(SIZE), "parameters": 45 * 10**9})}
    changes = advice(rl(learner={"ranks": 8}), machines, large)
    assert changes == ["scoring.reference_on=learner"]
    # A reward model has no such way out: it is cut over cards.
    large = {**sizes, "reward": ModelSize(**{**vars(SIZE), "parameters": 45 * 10**9})}
    assert advice(rl(learner={"ranks": 8}), machines, large) == ["scoring.tensor_parallel=2"]
    for wrong in (rl(learner={"ranks": 1}), rl(learner={"ranks": 2, "zero_stage": 1})):
        helping = advice(wrong, machines, sizes)
        assert any("learner.ranks" in change or "cpu_offload" in change for change in helping), helping
    assert advice(rl(), Machines(1, 4, 16), sizes) == ["more GPUs (--nodes, --gpus-per-node), or a smaller model"]


def test_an_engine_too_large_for_the_ranks_cards_is_advised_to_lie_over_several() -> None:
    large = replace(SIZE, parameters=45 * 10**9)
    sizes = {"policy": large, "critic": SIZE, "reference": large, "reward": SIZE}
    tree = {
        "algorithm": {"method": "rloo"},
        "learner": {"ranks": 8, "cpu_offload": True, "micro_batch_tokens": 1024},
        "rollout": {"workers": 8, "samples_per_prompt": 2},
        "scoring": {"reference_on": "learner", "batch_tokens": 1024},
        "cluster": {"placement": "colocated"},
    }
    changes = advice(rl(**tree), Machines(1, 8, 80), sizes)
    assert changes == ["rollout.tensor_parallel=2", "rollout.workers=4"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def test_every_stage_has_its_scenes(folder: str) -> None:
    prompts = {"path": "p"}
    stages: list[tuple[Job, list[str]]] = [
        (SFTConfig(model=folder, run_dir="r"), ["training"]),
        (RewardConfig(model=folder, run_dir="r"), ["training"]),
        (
            RewardConfig.model_validate({"model": folder, "policy": folder, "prompts": prompts}),
            ["sampling", "training"],
        ),
        (DPOConfig(model=folder, run_dir="r"), ["asking the reference", "training"]),
        (DPOConfig.model_validate({"model": folder, "loss": "simpo"}), ["training"]),
        (
            EvaluateConfig.model_validate({"policies": {"a": folder}, "prompts": prompts}),
            ["sampling", "scoring (reward)", "scoring (reference)"],
        ),
    ]
    for config, titles in stages:
        for machines in (Machines(1, 8, 80), Machines(1, 0, 24, 8)):
            plans = make_plans(config, machines, sizes_of(config))
            assert [each.scene.title for each in plans] == titles
            assert not any(each.problems() for each in plans)


def test_a_model_that_is_only_asked_has_no_gradients(folder: str) -> None:
    config = DPOConfig(model=folder, run_dir="r")
    asking, training = make_plans(config, Machines(1, 1, 80), sizes_of(config))
    assert "gradients" in training.parts("learner", "update")
    assert "gradients" not in asking.parts("learner", "update")


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


def test_an_engine_over_the_ranks_gpus_sits_on_those_of_one_node() -> None:
    sizes = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)
    made = rl(cluster={"placement": "colocated"}, learner={"ranks": 4}, rollout={"workers": 2, "tensor_parallel": 2})
    plan = make_plan(made, Machines(2, 2, 80), sizes)
    engines = [[actor.name for actor in seat.actors if actor.role == "rollout"] for seat in plan.seats if seat.actors]
    assert engines == [["rollout-0"], ["rollout-0"], ["rollout-1"], ["rollout-1"]]
    with pytest.raises(ConfigError, match=r"rollout-1 would be cut over the GPUs .*on 2 nodes; expected .* multiple"):
        make_plan(made, Machines(2, 3, 80), sizes)


def test_what_gives_way_to_engines_is_in_pinned_memory_from_then_on() -> None:
    sizes = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)
    held = {"learner": {"ranks": 8}, "scoring": {"reference_on": "learner"}, "cluster": {"placement": "colocated"}}
    plan = make_plan(rl(**held), Machines(1, 8, 80), sizes)
    learner = plan.scene.memory["learner"]
    pinned = "pinned for others' turns (host)"
    gone = {name: size for name, size in learner["kept"].items() if name in ("optimiser", "gradients", "asked models")}
    assert len(gone) == 3
    assert {parts[pinned] for parts in learner.values()} == {sum(gone.values())}
    assert not gone.keys() & learner["generate"].keys()
    reward = plan.scene.memory["reward"]
    assert reward["generate"]["parameters (host)"] == reward["generate"]["parameters"]
    written = learner["save"]["copy to be written (host)"]
    assert plan.host_bytes()[0] > 8 * (sum(gone.values()) + written), "while it saves, they are both there"
