import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.algorithms.bounds import LEAST, MOST
from rlhf_dist.algorithms.kl import AdaptiveKL, k1, k3, shaped_rewards


def test_k1_and_k3_are_unbiased_for_a_known_pair_of_distributions() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = float((p * (p / q).log()).sum())
    for estimator in (k1, k3):
        assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(exact)


@given(st.floats(-8, 3), st.floats(-8, 3))
def test_k3_is_never_negative(a: float, b: float) -> None:
    value = float(k3(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)))
    assert value >= -1e-12
    assert value == pytest.approx(math.exp(b - a) - 1 - (b - a), abs=1e-9)


def test_shaped_rewards_take_the_kl_penalty_off_every_token() -> None:
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    rewards = shaped_rewards(torch.tensor([0.0, 10.0, 0.0, 0.0, 20.0]), kl, coefficient=0.5)
    torch.testing.assert_close(rewards, torch.tensor([-0.05, 9.9, -0.15, -0.2, 19.75]))


def test_adaptive_coefficient_follows_the_formula_and_moves_towards_the_target() -> None:
    kl = AdaptiveKL(0.1, target=6.0, horizon=1000)
    kl.update(6.6, samples=100)
    assert kl.coefficient == pytest.approx(0.1 * math.exp(0.1 * 100 / 1000))
    assert kl.coefficient == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000), rel=1e-4), "the paper's, to first order"
    before = kl.coefficient
    kl.update(600.0, samples=100)
    assert kl.coefficient == pytest.approx(before * math.exp(0.2 * 0.1))
    kl.update(0.0, samples=100)
    assert kl.coefficient == pytest.approx(before)


@given(
    st.floats(1e-9, 1e6),
    st.floats(1e-9, 1e9),
    st.integers(1, 10**9),
    st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.integers(1, 10**9)), max_size=50),
)
def test_an_adaptive_coefficient_is_positive_and_moves_by_a_fifth_whatever_comes(
    start: float, target: float, horizon: int, batches: list[tuple[float, int]]
) -> None:
    kl = AdaptiveKL(start, target=target, horizon=horizon)
    for number, (found, samples) in enumerate(batches):
        before = kl.coefficient
        kl.update(found, samples)
        if math.isfinite(found):
            assert LEAST <= kl.coefficient <= MOST
        if number and LEAST <= before <= MOST:
            assert abs(math.log(kl.coefficient / before)) <= 0.2 + 1e-9
        if found > target and before < MOST:
            assert kl.coefficient >= before


def test_a_coefficient_finds_back_from_either_end() -> None:
    kl = AdaptiveKL(0.1, target=1.0, horizon=1)
    for _ in range(200):
        kl.update(0.0, samples=64)
    assert kl.coefficient == LEAST
    for _ in range(400):
        kl.update(1e9, samples=64)
    assert kl.coefficient == MOST


def test_fixed_coefficient_does_not_move() -> None:
    kl = AdaptiveKL(0.1, target=None, horizon=10)
    kl.update(100.0, samples=100)
    assert kl.coefficient == 0.1
