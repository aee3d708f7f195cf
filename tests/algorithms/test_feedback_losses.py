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
    kto_losses,
    kto_reference_point,
    kto_weights,
    log_odds,
    orpo_losses,
    ranking_losses,
    score_losses,
    simpo_losses,
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


MEANS = st.floats(-8, -0.01)
UNIT = st.floats(0, 1)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@given(MEANS, MEANS, UNIT, st.floats(0.1, 4), st.floats(0, 3), st.floats(0, 0.4))
def test_simpo_is_its_papers_formula(a: float, b: float, y: float, beta: float, gamma: float, eps: float) -> None:
    y_smooth = y * (1 - eps) + (1 - y) * eps
    expected = y_smooth * softplus(gamma - beta * (a - b)) + (1 - y_smooth) * softplus(gamma - beta * (b - a))
    found = simpo_losses(tensor(a), tensor(b), tensor(y), beta=beta, gamma=gamma, label_smoothing=eps)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@given(MEANS, MEANS, UNIT, st.floats(0, 2))
def test_orpo_is_its_papers_formula(a: float, b: float, y: float, odds_coef: float) -> None:
    def odds(mean: float) -> float:
        return math.exp(mean) / (1 - math.exp(mean))

    def hard(won: float, lost: float) -> float:
        return -won + odds_coef * math.log(1 + odds(lost) / odds(won))

    found = orpo_losses(tensor(a), tensor(b), tensor(y), odds_coef=odds_coef)
    assert float(found) == pytest.approx(y * hard(a, b) + (1 - y) * hard(b, a), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_stay_finite_at_certainty_and_exact_far_from_it(dtype: torch.dtype) -> None:
    at = torch.tensor([0.0, -1e-6, -0.7, -50.0, -1e4], dtype=dtype, requires_grad=True)
    found = log_odds(at)
    found.sum().backward()
    assert found.isfinite().all()
    assert at.grad.isfinite().all()
    assert found[1].item() == pytest.approx(-math.log(1e-6), rel=1e-3)
    assert found[3:].tolist() == pytest.approx([-50.0, -1e4])
    assert at.grad[3:].tolist() == pytest.approx([1.0, 1.0])


@given(st.floats(-20, 20), UNIT, st.floats(0, 30), st.floats(0.01, 1), st.floats(0.5, 3), st.floats(0.5, 3))
def test_kto_is_its_papers_formula(h: float, y: float, z: float, beta: float, good: float, bad: float) -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    desirable = good - good * sigmoid(beta * (h - z))
    undesirable = bad - bad * sigmoid(beta * (z - h))
    found = kto_losses(
        tensor(h), tensor(y), reference_point=z, beta=beta, desirable_weight=good, undesirable_weight=bad
    )
    assert float(found) == pytest.approx(y * desirable + (1 - y) * undesirable, rel=1e-9, abs=1e-12)


def test_a_half_desirable_answer_teaches_nothing_and_a_sure_one_is_bounded() -> None:
    h = torch.tensor([-3.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    kto_losses(h, torch.full_like(h, 0.5), reference_point=1.0, beta=0.3).sum().backward()
    torch.testing.assert_close(h.grad, torch.zeros_like(h))
    ends = kto_losses(tensor(-1e4, 1e4), tensor(1, 1), reference_point=2.0, beta=0.1, desirable_weight=1.5)
    assert ends.tolist() == [1.5, 0.0]


def test_the_reference_point_is_a_mean_that_is_never_below_zero_nor_nothing() -> None:
    assert kto_reference_point([]) == 0.0
    assert kto_reference_point([-3.0, 1.0]) == 0.0
    assert kto_reference_point([3.0, 0.0, -0.6]) == pytest.approx(0.8)


@given(st.integers(1, 10**6), st.integers(1, 10**6), *[st.none() | st.floats(0.1, 10)] * 2)
def test_ktos_weights_follow_the_papers_rule(good: int, bad: int, own: float | None, other: float | None) -> None:
    found = kto_weights(good, bad, given=(own, other))
    if own is not None and other is not None:
        assert found == (own, other)
        return
    together = found[0] * good / (found[1] * bad)
    assert 1 - 1e-9 <= together <= 4 / 3 + 1e-9
    assert all(asked in (None, each) for asked, each in zip((own, other), found, strict=True))
    if own is other is None:
        assert min(found) == 1.0
        assert (found == (1, 1)) == (bad <= good <= bad * 4 / 3)


def test_ktos_weights_of_known_counts() -> None:
    assert kto_weights(10, 100) == (10.0, 1.0)
    assert kto_weights(100, 10) == (1.0, pytest.approx(7.5))
    assert kto_weights(0, 7) == kto_weights(7, 0) == (1.0, 1.0)


PAIRED = {
    "dpo": lambda a, b, y: dpo_losses(a, b, y, beta=0.3, label_smoothing=0.1),
    "ipo": lambda a, b, y: ipo_losses(a, b, y, beta=0.3),
    "simpo": lambda a, b, y: simpo_losses(a, b, y, beta=2, gamma=1, label_smoothing=0.1),
    "orpo": lambda a, b, y: orpo_losses(a, b, y, odds_coef=0.3),
}


@pytest.mark.parametrize("name", PAIRED)
@given(MEANS, MEANS, UNIT)
def test_what_stands_first_does_not_matter(name: str, a: float, b: float, y: float) -> None:
    one = PAIRED[name](tensor(a), tensor(b), tensor(y))
    other = PAIRED[name](tensor(b), tensor(a), tensor(1 - y))
    assert float(one) == pytest.approx(float(other), rel=1e-9, abs=1e-12)


UNSMOOTHED = {
    "dpo": lambda a, b, y: dpo_losses(a, b, y, beta=0.3),
    "simpo": lambda a, b, y: simpo_losses(a, b, y, beta=2, gamma=1),
    "orpo": PAIRED["orpo"],
}


@pytest.mark.parametrize("name", UNSMOOTHED)
@given(MEANS, MEANS, st.floats(0.01, 1))
def test_a_likelier_preferred_answer_costs_less(name: str, a: float, b: float, more: float) -> None:
    before, after = (UNSMOOTHED[name](tensor(min(each, 0.0)), tensor(b), tensor(1)) for each in (a, a + more))
    assert float(after) < float(before)


LOSSES = {
    "comparison": lambda x: comparison_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), tensor(0.5, 0, 0.1), scale=1.7),
    "ranking": lambda x: ranking_losses(x, torch.tensor([2, 4]), scale=0.8),
    "score": lambda x: score_losses(x, tensor(0, 0.2, 0.4, 0.6, 0.8, 1)),
    "centring": lambda x: centring_losses(x[:3], x[3:]),
    "dpo": lambda x: dpo_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), beta=0.3, label_smoothing=0.1),
    "ipo": lambda x: ipo_losses(x[:3], x[3:], tensor(1, 0.3, 0.5), beta=0.3),
    "simpo": lambda x: simpo_losses(
        -x[:3].exp(), -x[3:].exp(), tensor(1, 0.3, 0.5), beta=2, gamma=1, label_smoothing=0.1
    ),
    "orpo": lambda x: orpo_losses(-x[:3].exp(), -x[3:].exp(), tensor(1, 0.3, 0.5), odds_coef=0.1),
    "kto": lambda x: kto_losses(
        x, tensor(0, 0.2, 0.4, 0.6, 0.8, 1), reference_point=0.7, beta=0.5, desirable_weight=1.3
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    def value(x) -> float:
        return float(LOSSES[name](torch.tensor(x, dtype=torch.float64)).sum())

    def gradient(x):
        at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        LOSSES[name](at).sum().backward()
        return at.grad.numpy()

    start = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.4, -2.0], dtype=torch.float64)
    assert check_grad(value, gradient, start.numpy()) < 1e-5
    assert torch.autograd.gradcheck(LOSSES[name], (start.requires_grad_(),))
