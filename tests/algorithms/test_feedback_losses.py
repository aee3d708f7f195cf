"""Losses on feedback against closed forms, slow versions and finite differences."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad

from rlhf_dist.algorithms.feedback_losses import (
    centring_losses,
    comparison_losses,
    dpo_losses,
    ipo_losses,
    ranking_losses,
    score_losses,
)

REWARDS = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slow_comparison(a: float, b: float, y: float, m: float, scale: float) -> float:
    d = scale * (a - b)
    return -y * math.log(1 / (1 + math.exp(-(d - m)))) - (1 - y) * math.log(1 / (1 + math.exp(d + m)))


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 3), st.floats(0.1, 4))
def test_comparison_loss_is_the_cross_entropy_of_bradley_and_terry(
    a: float, b: float, y: float, m: float, scale: float
) -> None:
    found = comparison_losses(tensor(a), tensor(b), tensor(y), tensor(m), scale=scale)
    assert float(found) == pytest.approx(slow_comparison(a, b, y, m, scale), rel=1e-9)


def test_a_hard_label_is_minus_log_sigmoid_and_a_tie_is_least_at_equal_rewards() -> None:
    zero = tensor(0)
    assert float(comparison_losses(tensor(2), zero, tensor(1), zero)) == pytest.approx(math.log1p(math.exp(-2)))
    tie = [float(comparison_losses(tensor(gap), zero, tensor(0.5), zero)) for gap in (-1, 0, 1)]
    assert tie[1] == pytest.approx(math.log(2))
    assert tie[0] == pytest.approx(tie[2])
    assert tie[1] < tie[0]


def test_the_loss_is_least_where_the_model_says_what_people_say() -> None:
    gap = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([gap], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        found = comparison_losses(gap, torch.zeros_like(gap), tensor(0.8), tensor(0)).sum()
        found.backward()
        return found

    optimiser.step(loss)
    assert torch.sigmoid(gap).item() == pytest.approx(0.8, abs=1e-4)


@given(REWARDS, st.floats(0.2, 3))
def test_ranking_loss_is_plackett_and_luces_likelihood(rewards: list[float], scale: float) -> None:
    strengths = [math.exp(scale * r) for r in rewards]
    expected = -sum(math.log(s / sum(strengths[i:])) for i, s in enumerate(strengths))
    found = ranking_losses(tensor(*rewards), torch.tensor([len(rewards)]), scale=scale)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_all_orders_of_a_ranking_have_probability_one_together() -> None:
    rewards = [0.3, -1.2, 2.0, 0.7]
    orders = [tensor(*order) for order in itertools.permutations(rewards)]
    total = sum(math.exp(-float(ranking_losses(order, torch.tensor([4])))) for order in orders)
    assert total == pytest.approx(1.0)


def test_a_ranking_of_two_is_a_comparison_and_lengths_may_differ() -> None:
    rewards = tensor(1.0, -0.5, 2.0, 0.0, 1.0)
    found = ranking_losses(rewards, torch.tensor([2, 3]))
    pair = comparison_losses(tensor(1.0), tensor(-0.5), tensor(1), tensor(0))
    three = ranking_losses(tensor(2.0, 0.0, 1.0), torch.tensor([3]))
    torch.testing.assert_close(found, torch.cat([pair, three]))


def test_scores_are_squared_errors_of_sigmoids_and_centring_ignores_gaps() -> None:
    assert float(score_losses(tensor(0.0), tensor(1.0))) == 0.25
    assert float(centring_losses(tensor(3.0), tensor(-3.0))) == 0
    assert float(centring_losses(tensor(3.0), tensor(1.0))) == 16


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 0.4))
def test_dpo_and_ipo_are_their_papers_formulas(a: float, b: float, y: float, beta: float, eps: float) -> None:
    h = beta * (a - b)
    up, down = math.log1p(math.exp(-h)), math.log1p(math.exp(h))
    smoothed = y * ((1 - eps) * up + eps * down) + (1 - y) * ((1 - eps) * down + eps * up)
    found = dpo_losses(tensor(a), tensor(b), tensor(y), beta=beta, label_smoothing=eps)
    assert float(found) == pytest.approx(smoothed, rel=1e-9)
    expected = y * (a - b - 1 / (2 * beta)) ** 2 + (1 - y) * (b - a - 1 / (2 * beta)) ** 2
    assert float(ipo_losses(tensor(a), tensor(b), tensor(y), beta=beta)) == pytest.approx(expected, rel=1e-9)


LOSSES = {
    "comparison": lambda x: comparison_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), tensor(0.5, 0, 0.1), scale=1.7),
    "ranking": lambda x: ranking_losses(x, torch.tensor([2, 4]), scale=0.8),
    "score": lambda x: score_losses(x, tensor(0, 0.2, 0.4, 0.6, 0.8, 1)),
    "centring": lambda x: centring_losses(x[:3], x[3:]),
    "dpo": lambda x: dpo_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), beta=0.3, label_smoothing=0.1),
    "ipo": lambda x: ipo_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), beta=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    def value(x) -> float:
        return float(LOSSES[name](torch.tensor(x, dtype=torch.float64)).sum())

    def gradient(x):
        at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        LOSSES[name](at).sum().backward()
        return at.grad.numpy()

    start = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.4, -2.0], dtype=torch.float64).numpy()
    assert check_grad(value, gradient, start) < 1e-5
