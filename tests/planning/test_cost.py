import pytest

from rlhf_dist.config import RLConfig
from rlhf_dist.planning.cost import CPU, GPUS, device_of, phase_seconds
from rlhf_dist.planning.sizes import ModelSize

SIZE = ModelSize(
    parameters=10**9, layers=16, hidden=2048, intermediate=5632, attention=2048, kv_elements=16_384, vocabulary=32_000
)
SIZES = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)


def seconds(workers: int = 1, **sections: object) -> dict[str, float]:
    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "learner": {"precision": "bf16"}, **sections}
    return phase_seconds(RLConfig.model_validate(tree), SIZES, GPUS[80], rollout_workers=workers, gpus=True)


def test_the_update_costs_its_floating_point_operations() -> None:
    # Forward and backward of both, and the critic's values before; 64 samples of 256 + 0.6 * 128 tokens.
    tokens, second = 64 * (256 + 0.6 * 128), GPUS[80].tflops * 1e12
    assert seconds()["update"] == (6 + (6 + 2)) * 10**9 * tokens / second
    # With two epochs the old log-probs are no longer the rollout's.
    assert seconds(rl={"epochs": 2})["update"] == ((12 + 2) + (12 + 2)) * 10**9 * tokens / second


def test_more_of_what_a_phase_needs_shortens_it() -> None:
    plain = seconds()
    assert seconds(workers=4)["gen"] < plain["gen"]
    assert seconds(learner={"precision": "bf16", "ranks": 2})["update"] == plain["update"] / 2
    assert seconds(scoring={"reward_workers": 2, "reference_workers": 2})["score"] == plain["score"] / 2


def test_decoding_a_few_samples_is_bound_by_reading_the_weights() -> None:
    few = seconds(rl={"prompts_per_iteration": 2})
    reading = 128 * 2 * 10**9 / (GPUS[80].bandwidth_gb * 1e9)
    assert reading < few["gen"] - 128 * GPUS[80].step_s < 1.5 * reading


def test_a_reference_on_the_learner_is_a_forward_pass_of_the_update_and_none_of_scoring() -> None:
    tokens, second = 64 * (256 + 0.6 * 128), GPUS[80].tflops * 1e12
    plain, held = seconds(), seconds(scoring={"reference_on": "learner"})
    assert held["update"] - plain["update"] == pytest.approx(2 * 10**9 * tokens / second)
    assert seconds(scoring={"reference_on": "learner", "reward_workers": 2})["score"] == plain["score"] / 2


def test_a_model_over_several_gpus_scores_faster() -> None:
    assert seconds(scoring={"tensor_parallel": 4})["score"] == seconds()["score"] / 4


def test_devices_are_told_by_their_memory() -> None:
    assert device_of(80, gpus=True) is GPUS[80]
    assert device_of(143, gpus=True) is GPUS[141]
    assert device_of(80, gpus=False) is CPU


def test_frozen_weights_have_no_gradients_and_a_policy_that_is_its_own_reference_is_asked_by_the_learner() -> None:
    tokens, second = 64 * (256 + 0.6 * 128), GPUS[80].tflops * 1e12
    own = seconds(learner={"precision": "bf16", "lora": {}})
    assert own["update"] == pytest.approx(((4 + 2) + (4 + 2)) * 10**9 * tokens / second)
    named = seconds(learner={"precision": "bf16", "lora": {}}, reference="r")
    assert named["update"] == pytest.approx((4 + (4 + 2)) * 10**9 * tokens / second)
    workers = {"reward_workers": 2}
    assert seconds(learner={"precision": "bf16", "lora": {}}, scoring=workers)["score"] == own["score"] / 2
    assert own["update_weights"] == 0, "this size names no weights that adapters would change"
