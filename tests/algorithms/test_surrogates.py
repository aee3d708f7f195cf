"""Each surrogate against tables by hand, a loop over tokens, and finite differences."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms import surrogates
from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.surrogates import Losses, Surrogate
from rlhf_dist.config import METHODS, Algorithm
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.objective import surrogate_of

LENGTHS = torch.tensor([3, 1, 5, 2])
PER_ANSWER = {"surrogate": "squared", "baseline": "none", "whiten_advantages": False, "aggregate": "sequence_mean"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"surrogate": "plain"},
    "clip": {"surrogate": "clip"},
    "clip_higher": {"surrogate": "clip", "clip_ratio_high": 0.28},
    "dual": {"surrogate": "clip", "dual_clip": 3.0},
    "sequence_clip": {"surrogate": "sequence_clip", "clip_ratio_high": 0.3, "aggregate": "sequence_mean"},
    "weight_cap": {"surrogate": "weight_cap", "weight_cap": 1.5},
    "soft_gate": {"surrogate": "soft_gate"},
    "squared": {**PER_ANSWER, "tau": 0.4},
}


def surrogate(name: str) -> Surrogate:
    return surrogate_of(Algorithm(**SETTINGS[name]))


def tokens(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New and old log-probs, and advantages, some of every sign."""
    generator = torch.Generator().manual_seed(seed)
    new, old, advantages = (0.5 * torch.randn(11, dtype=torch.float64, generator=generator) for _ in range(3))
    return new, old, advantages


def at(ratio: float, advantage: float, name: str) -> tuple[float, float, bool]:
    """Loss, gradient by the log-prob, and whether it counts as clipped, of one token with log pi_old = -1."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    made = surrogate(name)(new, old, torch.tensor([advantage], dtype=torch.float64), torch.tensor([1]))
    (slope,) = torch.autograd.grad(made.loss.sum(), new)
    return float(made.loss.detach()), float(slope), bool(made.clipped)


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "loss", "slope", "clipped"),
    [
        ("plain", 0.5, 2.0, -2.0 * (math.log(0.5) - 1), -2.0, False),
        ("plain", 4.0, -2.0, 2.0 * (math.log(4.0) - 1), 2.0, False),
        ("clip", 0.5, 2.0, -1.0, -1.0, False),
        ("clip", 1.1, 2.0, -2.2, -2.2, False),
        ("clip", 1.5, 2.0, -2.4, 0.0, True),
        ("clip", 0.5, -2.0, 1.6, 0.0, True),
        ("clip", 0.9, -2.0, 1.8, 1.8, False),
        ("clip", 5.0, -2.0, 10.0, 10.0, False),
        ("clip_higher", 1.25, 2.0, -2.5, -2.5, False),
        ("clip_higher", 1.5, 2.0, -2.56, 0.0, True),
        ("clip_higher", 0.75, -2.0, 1.6, 0.0, True),
        ("dual", 5.0, -2.0, 6.0, 0.0, True),
        ("dual", 2.9, -2.0, 5.8, 5.8, False),
        ("dual", 0.5, -2.0, 1.6, 0.0, True),
        ("dual", 5.0, 2.0, -2.4, 0.0, True),
        ("dual", 0.5, 2.0, -1.0, -1.0, False),
        ("sequence_clip", 0.9, 2.0, -1.8, -1.8, False),
        ("sequence_clip", 1.5, 2.0, -2.6, 0.0, True),
        ("sequence_clip", 0.5, -2.0, 1.6, 0.0, True),
        ("weight_cap", 0.5, 2.0, -2.0 * 0.5 * (math.log(0.5) - 1), -1.0, False),
        ("weight_cap", 2.0, 2.0, -2.0 * 1.5 * (math.log(2.0) - 1), -3.0, True),
        ("weight_cap", 2.0, -2.0, 2.0 * 1.5 * (math.log(2.0) - 1), 3.0, True),
        ("squared", 1.5, 2.0, (2.0 - 0.4 * math.log(1.5)) ** 2 / 0.8, -(2.0 - 0.4 * math.log(1.5)), False),
        ("squared", 0.5, -2.0, (2.0 + 0.4 * math.log(0.5)) ** 2 / 0.8, 2.0 + 0.4 * math.log(0.5), False),
    ],
)
def test_value_and_gradient_below_inside_and_above_the_bounds_by_the_advantages_sign(
    name: str, ratio: float, advantage: float, loss: float, slope: float, clipped: bool
) -> None:
    assert at(ratio, advantage, name) == (pytest.approx(loss), pytest.approx(slope, abs=1e-12), clipped)


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.94), (1.0, 1.0), (2.0, 0.79), (5.0, 0.07)])
def test_the_soft_gate_damps_as_its_paper_plots(ratio: float, weight: float) -> None:
    loss, slope, clipped = at(ratio, 1.0, "soft_gate")
    assert slope / -ratio == pytest.approx(weight, abs=5e-3)
    assert loss == pytest.approx(-4 / (1 + math.exp(-(ratio - 1))))
    assert not clipped
    gate = 1 / (1 + math.exp(-1.05 * (ratio - 1)))
    found, slope, _ = at(ratio, -1.0, "soft_gate")
    assert found == pytest.approx(4 / 1.05 * gate)
    assert slope == pytest.approx(4 * gate * (1 - gate) * ratio)


def slow(name: str, n: float, o: float, a: float) -> tuple[float, bool]:
    """One token's loss, where it has one of its own."""
    ratio = math.exp(n - o)
    low, high = 0.8, 1.28 if name == "clip_higher" else 1.2
    if name == "plain":
        return -a * n, False
    if name == "weight_cap":
        return -a * min(ratio, 1.5) * n, ratio > 1.5
    if name == "soft_gate":
        t = 1.0 if a > 0 else 1.05
        return -a * 4 / t / (1 + math.exp(-t * (ratio - 1))), False
    loss = max(-a * ratio, -a * min(max(ratio, low), high))
    clipped = loss > -a * ratio
    if name == "dual" and a < 0 and loss > -3 * a:
        return -3 * a, True
    return loss, clipped


@pytest.mark.parametrize("name", ["plain", "clip", "clip_higher", "dual", "weight_cap", "soft_gate"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_losses_of_tokens_equal_a_loop(name: str, seed: int) -> None:
    new, old, advantages = (3 * x for x in tokens(seed))
    made = surrogate(name)(new, old, advantages, LENGTHS)
    each = [slow(name, *token) for token in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True)]
    assert made.loss.tolist() == pytest.approx([loss for loss, _ in each])
    assert made.clipped.tolist() == [clipped for _, clipped in each]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_losses_of_answers_equal_a_loop_and_stand_on_each_token(seed: int) -> None:
    new, old, advantages = tokens(seed)
    answers = zip(*(x.split(LENGTHS.tolist()) for x in (new, old, advantages)), strict=True)
    clipped, squared = [], []
    for n, o, a in answers:
        ratio = math.exp(float((n - o).mean()))
        clipped += [max(-x * ratio, -x * min(max(ratio, 0.8), 1.3)) for x in a.tolist()]
        squared += [(float(a.mean()) - 0.4 * float((n - o).sum())) ** 2 / 0.8] * len(n)
    assert surrogate("sequence_clip")(new, old, advantages, LENGTHS).loss.tolist() == pytest.approx(clipped)
    assert surrogate("squared")(new, old, advantages, LENGTHS).loss.tolist() == pytest.approx(squared)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "weight_cap"])
def test_gradients_equal_finite_differences(name: str) -> None:
    new, old, advantages = tokens()
    loss = surrogate(name)
    assert torch.autograd.gradcheck(lambda x: loss(x, old, advantages, LENGTHS).loss, (new.requires_grad_(),))


def test_the_weight_of_a_capped_loss_is_held_fixed() -> None:
    new, old, advantages = tokens()
    (slope,) = torch.autograd.grad(
        surrogate("weight_cap")(new.requires_grad_(), old, advantages, LENGTHS).loss.sum(), new
    )
    torch.testing.assert_close(slope, -advantages * (new - old).detach().exp().clamp(max=1.5))


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_at_ratio_one_the_gradient_is_minus_the_advantage(name: str, seed: int) -> None:
    new, _, advantages = tokens(seed)
    advantages = torch.repeat_interleave(advantages[:4], LENGTHS)  # one for each answer
    made = surrogate(name)(new.requires_grad_(), new.detach(), advantages, LENGTHS)
    of_mean = (
        torch.repeat_interleave(LENGTHS, LENGTHS) if name == "squared" else 1.0
    )  # a loss of the answer on each token
    (slope,) = torch.autograd.grad((made.loss / of_mean).sum(), new)
    torch.testing.assert_close(slope, -advantages)
    assert made.clipped.tolist() == [False] * 11


def test_a_ratio_at_the_cap_is_not_clipped() -> None:
    ratio = torch.tensor([0.4], dtype=torch.float64)
    cap = float(ratio.exp())
    made = surrogates.weight_cap(ratio, 0 * ratio, ratio, torch.tensor([1]), cap=cap)
    assert made.clipped.tolist() == [False]
    assert surrogates.weight_cap(ratio, 0 * ratio, ratio, torch.tensor([1]), cap=0.999 * cap).clipped.tolist() == [True]


@pytest.mark.parametrize("name", ["clip", "dual", "sequence_clip", "weight_cap", "soft_gate"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_log_ratios_are_cut_where_exponentials_would_overflow(name: str, sign: float) -> None:
    """A surrogate that holds the weight fixed goes on learning; of the others the gradient is zero there."""
    ends = []
    for nats in (MOST_NATS, MOST_NATS + 5, 1e4):
        for advantage in (-1.0, 1.0):
            old = torch.zeros(1, dtype=torch.float64)
            new = (old + sign * nats).requires_grad_()
            lengths, told = torch.tensor([1]), torch.tensor([advantage], dtype=torch.float64)
            loss = surrogate(name)(new, old, told, lengths).loss.sum()
            (slope,) = torch.autograd.grad(loss, new)
            assert loss.isfinite()
            if name == "weight_cap":
                bounded = min(math.exp(sign * MOST_NATS), 1.5)
                assert float(slope) == pytest.approx(-advantage * bounded)
            elif nats > MOST_NATS:
                assert float(slope) == 0
            ends.append((advantage, float(loss.detach())))
    if name != "weight_cap":
        assert len({loss for advantage, loss in ends if advantage < 0}) == 1


def test_the_cut_is_at_20_nats_either_way() -> None:
    x = torch.tensor([-25.0, -20.0, 3.0, 20.0, 21.0])
    assert surrogates.cut(x).tolist() == [-20.0, -20.0, 3.0, 20.0, 20.0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_surrogate(name: str) -> None:
    new, old, advantages = tokens()
    made = surrogate_of(Algorithm(method=name))(new, old, advantages, LENGTHS)
    assert made.loss.shape == made.clipped.shape == new.shape


def own(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return advantages * (old - new)


def own_with_clips(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> Losses:
    return Losses(own(new, old, advantages, lengths), new > old)


@pytest.mark.parametrize("function", [own, own_with_clips])
def test_ones_own_is_a_surrogate_whether_it_says_what_it_clips_or_not(function: Callable[..., Any]) -> None:
    new, old, advantages = tokens()
    made = surrogate_of(Algorithm(surrogate=f"{__name__}:{function.__name__}"))(new, old, advantages, LENGTHS)
    torch.testing.assert_close(made.loss, advantages * (old - new))
    assert (
        made.clipped.tolist() == ((new > old) if function is own_with_clips else torch.zeros_like(new)).bool().tolist()
    )


def test_ones_own_that_is_not_there_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match="algorithm.surrogate is 'nowhere.to_be:found'"):
        surrogate_of(Algorithm(surrogate="nowhere.to_be:found"))
