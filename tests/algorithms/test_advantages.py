import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.advantages import gae, lambda_by_length, moments, whiten
from rlhf_dist.algorithms.answers import NO_SPREAD


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t as the explicit sum over later deltas, arXiv:1506.02438 equation 16."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    step=st.floats(-1, 0),
    seed=st.integers(0, 1000),
)
def test_gae_equals_the_explicit_sum_over_later_deltas(
    lengths: list[int], gamma: float, lam: float, step: float, seed: int
) -> None:
    """With one lambda, and with one for each answer."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(sum(lengths), dtype=torch.float64, generator=generator) for _ in range(2))
    own = [max(0.0, lam + step * number / len(lengths)) for number in range(len(lengths))]
    for told, each in ((lam, [lam] * len(lengths)), (torch.tensor(own, dtype=torch.float64), own)):
        advantages, returns = gae(rewards, values, torch.tensor(lengths), gamma=gamma, lam=told)
        expected: list[float] = []
        for r, v, number in zip(rewards.split(lengths), values.split(lengths), each, strict=True):
            expected += slow_gae(r.tolist(), v.tolist(), gamma, number)
        torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(returns, advantages + values)


def test_gae_by_hand() -> None:
    advantages, returns = gae(
        torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([2]), gamma=0.5, lam=0.5
    )
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0.5 * 0.25 - 0.5 = -0.375; A_0 = -0.375 + 0.25 * 0.75
    assert advantages.tolist() == pytest.approx([-0.1875, 0.75])
    assert returns.tolist() == pytest.approx([0.3125, 1.0])


def test_lambda_one_gives_monte_carlo_returns() -> None:
    rewards, values = torch.randn(7), torch.randn(7)
    _, returns = gae(rewards, values, torch.tensor([7]), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(0).cumsum(0).flip(0))


def test_under_true_values_advantages_are_surprises() -> None:
    """Values that are right leave nothing but what was not to be foreseen, whatever lambda is."""
    rewards, values = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.5, 1.0, 2.0])
    for lam in (0.0, 0.7, 1.0):
        advantages, _ = gae(rewards, values, torch.tensor([3]), gamma=1.0, lam=lam)
        assert advantages.abs().max() < 1e-6


@pytest.mark.parametrize("shapes", [(2, 3, [3]), (3, 2, [3]), (3, 3, [2])])
def test_what_does_not_fit_together_is_refused(shapes: tuple[int, int, list[int]]) -> None:
    rewards, values, lengths = shapes
    with pytest.raises(AssertionError):
        gae(torch.zeros(rewards), torch.zeros(values), torch.tensor(lengths), gamma=1.0, lam=1.0)


def spread(x: torch.Tensor) -> float:
    return float(x.max() - x.min())


@given(st.integers(1, 9))
def test_whitening_split_over_ranks_equals_whitening_the_whole(cut: int) -> None:
    x = torch.linspace(-3, 5, 10) ** 2
    total = moments(x[:cut]) + moments(x[cut:])
    split = torch.cat([whiten(part, total, spread=spread(x)) for part in (x[:cut], x[cut:])])
    torch.testing.assert_close(split, whiten(x, moments(x), spread=spread(x)))
    torch.testing.assert_close(split, (x - x.mean()) / x.std(unbiased=False), atol=1e-5, rtol=1e-5)
    assert split.dtype == x.dtype


def test_moments_are_count_sum_and_squares() -> None:
    found = moments(torch.tensor([1.0, -2.0, 4.0]))
    assert found.tolist() == [3.0, 3.0, 21.0]
    assert found.dtype == torch.float64


@pytest.mark.parametrize(("size", "zero"), [(NO_SPREAD, True), (1.01 * NO_SPREAD, False)])
def test_what_is_all_the_same_becomes_zero_and_not_noise(size: float, zero: bool) -> None:
    x = torch.tensor([0.0, size], dtype=torch.float64)
    found = whiten(x, moments(x), spread=spread(x))
    assert (found == 0).all() == zero
    constant = torch.full((64,), 0.35)
    assert whiten(constant, moments(constant), spread=0.0).tolist() == [0.0] * 64


def test_a_variance_that_rounding_made_negative_is_none() -> None:
    x = torch.tensor([1e8, 1e8 + 1], dtype=torch.float64)
    found = whiten(x, torch.tensor([2.0, 2e8, 2e16 - 64], dtype=torch.float64), spread=1.0)
    assert found.tolist() == pytest.approx([0.0, 1e4]), "the variance is eps alone"


@pytest.mark.parametrize(("length", "lam"), [(10, 0.0), (20, 0.0), (40, 0.5), (100, 0.8), (1000, 0.98)])
def test_lambda_by_length_is_vapos(length: int, lam: float) -> None:
    found = lambda_by_length(torch.tensor([length, 1]), 0.05)
    assert found.tolist() == pytest.approx([lam, 0.0], abs=1e-6)
