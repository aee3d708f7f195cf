import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.bounds import LEAST, MOST, MOST_NATS
from rlhf_dist.algorithms.kl import ESTIMATORS, AdaptiveKL, k1, k2, k3, kl_losses, shaped_rewards


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


def test_estimates_by_hand() -> None:
    p, q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])
    assert k1(p, q).tolist() == [0.5, -1.5]
    assert k2(p, q).tolist() == [0.125, 1.125]
    assert k3(p, q).tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.exp(1.5) - 2.5])
    assert {"k1": k1, "k2": k2, "k3": k3} == ESTIMATORS


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_an_estimates_own_gradient_equals_finite_differences(name: str) -> None:
    p = torch.tensor([-1.0, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([-1.5, -0.5, -4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ESTIMATORS[name](x, q), (p,))


def test_k3_is_cut_where_it_would_overflow_and_has_no_gradient_there() -> None:
    p = torch.tensor([-1e4, -25.0, 1e4], dtype=torch.float64, requires_grad=True)
    found = k3(p, torch.zeros(3, dtype=torch.float64))
    most, least = math.expm1(MOST_NATS) - MOST_NATS, math.expm1(-MOST_NATS) + MOST_NATS
    assert found.tolist() == pytest.approx([most, most, least])
    assert torch.autograd.grad(found.sum(), p)[0].tolist() == [0, 0, 0]


def slow_loss(name: str, answer: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Value and gradient by its own log-prob of each token's loss, score term in."""
    values, slopes = [], []
    for new, _, ref in answer:
        d = new - ref
        values.append({"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[name])
        slopes.append({"k1": 1.0, "k2": d, "k3": 1 - math.exp(-d)}[name])
    found = []
    for t, (new, old, _) in enumerate(answer):
        ratio, to_go = math.exp(new - old), sum(values[t:])
        found.append((ratio * to_go, ratio * (slopes[t] + to_go)))
    return found


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
@settings(max_examples=25)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 0), st.floats(-3, 0), st.floats(-3, 0)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_the_exact_loss_equals_a_loop(name: str, answers: list[list[tuple[float, float, float]]]) -> None:
    lengths = torch.tensor([len(answer) for answer in answers])
    new, old, ref = torch.tensor([token for answer in answers for token in answer], dtype=torch.float64).T.unbind()
    new = new.clone().requires_grad_()
    losses = kl_losses(new, old, ref, lengths, estimator=name, exact=True)
    (slopes,) = torch.autograd.grad(losses.sum(), new)
    expected = [each for answer in answers for each in slow_loss(name, answer)]
    assert losses.tolist() == pytest.approx([value for value, _ in expected], abs=1e-9)
    assert slopes.tolist() == pytest.approx([slope for _, slope in expected], abs=1e-9)
    own = kl_losses(new, old, ref, lengths, estimator=name, exact=False)
    torch.testing.assert_close(own, ESTIMATORS[name](new, ref))


def test_the_ratio_of_the_exact_loss_is_cut_as_others_are() -> None:
    new = torch.tensor([MOST_NATS + 5.0, -MOST_NATS - 5.0], dtype=torch.float64)
    losses = kl_losses(new, 0 * new, new - 1, torch.tensor([1, 1]), estimator="k1", exact=True)
    assert losses.tolist() == pytest.approx([math.exp(MOST_NATS), math.exp(-MOST_NATS)])


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


def test_a_batch_counts_as_one_horizon_at_most() -> None:
    kl = AdaptiveKL(0.1, target=1.0, horizon=10)
    kl.update(1.1, samples=10_000)
    assert kl.coefficient == pytest.approx(0.1 * math.exp(0.1))


def test_rewards_and_kl_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError):
        shaped_rewards(torch.zeros(2), torch.zeros(3), coefficient=1.0)
