import pytest

from rlhf_dist.cluster.placement import ModelSize, learner_memory, place, totals
from rlhf_dist.config import PPOConfig

SIZE = ModelSize(parameters=1_000_000, layers=4, hidden=64, kv_elements=512, vocabulary=1000)
SIZES = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)


def config(**learner: object) -> PPOConfig:
    return PPOConfig.model_validate({"policy": "a", "reward": "b", "prompts": {"path": "p"}, "learner": learner})


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)],
)
def test_zero_divides_what_its_paper_says(stage: int, weights: int, gradients: int, optimiser: int) -> None:
    memory = learner_memory(config(zero_stage=stage, ranks=4, precision="bf16"), SIZES)
    both = 2_000_000  # policy and critic
    assert memory["weights"] == both * 2 / weights
    assert memory["gradients"] == both * 2 / gradients
    assert memory["optimiser"] == both * 12 / optimiser


def test_actors_ask_for_gpus_only_where_there_are_some() -> None:
    assert totals(place(config(ranks=2), SIZES, gpus=False)) == (5, 0.0)
    assert totals(place(config(ranks=2), SIZES, gpus=True)) == (5, 5.0)
