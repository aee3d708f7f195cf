import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.advantages import gae, moments, whiten


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t as the explicit sum over later deltas, arXiv:1506.02438 equation 16."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))]


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_gae_equals_the_explicit_sum_over_later_deltas(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(sum(lengths), dtype=torch.float64, generator=generator) for _ in range(2))
    advantages, returns = gae(rewards, values, torch.tensor(lengths), gamma=gamma, lam=lam)
    expected: list[float] = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        expected += slow_gae(r.tolist(), v.tolist(), gamma, lam)
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


@given(st.integers(1, 9))
def test_whitening_split_over_ranks_equals_whitening_the_whole(cut: int) -> None:
    x = torch.linspace(-3, 5, 10) ** 2
    total = moments(x[:cut]) + moments(x[cut:])
    split = torch.cat([whiten(x[:cut], total), whiten(x[cut:], total)])
    torch.testing.assert_close(split, whiten(x, moments(x)))
    torch.testing.assert_close(split, (x - x.mean()) / x.std(unbiased=False), atol=1e-5, rtol=1e-5)
