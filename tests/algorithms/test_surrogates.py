import math

import pytest
import torch

from rlhf_dist.algorithms.surrogates import ClippedSurrogate

CLIP = ClippedSurrogate(0.2)
LENGTHS = torch.tensor([40])


def tokens(count: int = 40) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, dtype=torch.float64, generator=generator) * 0.5 for _ in range(3))


def test_the_clipped_surrogate_equals_a_loop_over_tokens() -> None:
    new, old, advantages = tokens()
    loss, sums = CLIP(new, old, advantages, LENGTHS)
    expected = clipped = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(n - o)
        plain, near = ratio * a, min(max(ratio, 0.8), 1.2) * a
        expected -= min(plain, near)
        clipped += near < plain
    assert float(loss) == pytest.approx(expected)
    assert float(sums["pg_clipfrac"]) == clipped > 0


def test_its_gradient_equals_finite_differences() -> None:
    new, old, advantages = tokens()
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CLIP(x, old, advantages, LENGTHS)[0], (new,))


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    new, _, advantages = tokens()
    new.requires_grad_()
    CLIP(new, new.detach(), advantages, LENGTHS)[0].backward()
    torch.testing.assert_close(new.grad, -advantages)
