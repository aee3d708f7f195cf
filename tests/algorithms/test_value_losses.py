import pytest
import torch

from rlhf_dist.algorithms.value_losses import explained_variance_sums, value_loss_sum


def tokens(count: int = 40) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, dtype=torch.float64, generator=generator) * 0.5 for _ in range(3))


def test_value_loss_equals_a_loop_and_finite_differences() -> None:
    new, old, returns = tokens()
    loss, clipped = value_loss_sum(new, old, returns, clip_value=0.2)
    expected = count = 0.0
    for n, o, r in zip(new.tolist(), old.tolist(), returns.tolist(), strict=True):
        near = o + min(max(n - o, -0.2), 0.2)
        expected += 0.5 * max((n - r) ** 2, (near - r) ** 2)
        count += (near - r) ** 2 > (n - r) ** 2
    assert float(loss) == pytest.approx(expected)
    assert float(clipped) == count > 0
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_loss_sum(x, old, returns, clip_value=0.2)[0], (new,))


def test_explained_variance_sums_give_one_for_a_perfect_critic() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    error, total = explained_variance_sums(returns, returns)
    assert error[1:].tolist() == [0.0, 0.0]
    assert total.tolist() == [3.0, 7.0, 21.0]
