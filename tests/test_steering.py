import math

import pytest

from rlhf_dist.config import Algorithm
from rlhf_dist.steering import State, Steering


def test_a_target_per_token_is_compared_with_the_kl_of_a_token() -> None:
    facts = {"objective/kl": 4.0, "response_length/mean": 40.0}
    for per, moves in (("token", 0.0), ("answer", 1.0)):
        algorithm = Algorithm(kl_coef=0.1, kl_target=0.1, kl_target_per=per, kl_horizon=10)  # type: ignore[arg-type]
        state = State.start(algorithm)
        Steering(algorithm, state).move(state, facts, samples=10)
        assert state.kl_coef == pytest.approx(0.1 * math.exp(0.2 * moves))


def test_the_entropys_coefficient_and_the_mean_of_rewards_go_on_where_a_run_is_resumed() -> None:
    algorithm = Algorithm.model_validate({"method": "max_entropy", "entropy_target": 2.0, "entropy_lr": 0.1})
    state = State.start(algorithm)
    steering = Steering(algorithm, state)
    assert steering.running_mean == 0.0
    steering.move(state, {"actor/entropy": 1.0, "objective/rlhf_reward": 3.0}, samples=1)
    assert state.entropy_coef == pytest.approx(0.01 * math.exp(0.1))
    assert steering.running_mean == pytest.approx(3.0), "of one iteration it is that one's"
    resumed = Steering(algorithm, state.copy())
    for each in (steering, resumed):
        each.move(state.copy(), {"actor/entropy": 3.0, "objective/rlhf_reward": 5.0}, samples=1)
    assert resumed.running_mean == steering.running_mean
    assert 3 < resumed.running_mean < 5
    steering.move(state, {}, samples=1)
    assert state.entropy_coef == pytest.approx(0.01), "up for too little, down for too much as far"
