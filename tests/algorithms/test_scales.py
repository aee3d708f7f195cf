"""Scales against the standard deviation, and what is not to be divided by."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.answers import NO_SPREAD, AnswerBatch
from rlhf_dist.algorithms.scales import SCALES
from tests.algorithms.tree import answers_of

REWARDS = st.lists(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=5), min_size=1, max_size=5)


def answers(*groups: list[float]) -> AnswerBatch:
    rewards = torch.tensor([reward for group in groups for reward in group], dtype=torch.float64)
    numbers = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    return AnswerBatch(rewards, torch.ones_like(numbers), numbers, rewards)


@settings(max_examples=25)
@given(REWARDS)
def test_the_groups_scale_divides_by_its_standard_deviation(groups: list[list[float]]) -> None:
    told = answers(*groups)
    centred = told.rewards + 1.0
    expected = [
        (reward + 1.0) / statistics.stdev(group) if max(group) > min(group) else 0.0
        for group in groups
        for reward in group
    ]
    assert SCALES["group"](centred, told).tolist() == pytest.approx(expected)


@settings(max_examples=25)
@given(REWARDS)
def test_the_batchs_scale_divides_by_that_of_all_advantages(groups: list[list[float]]) -> None:
    told = answers(*groups)
    flat = [reward for group in groups for reward in group]
    std = statistics.stdev(flat)
    expected = [2 * reward / (2 * std) if std else 0.0 for reward in flat]
    assert SCALES["batch"](2 * told.rewards, told).tolist() == pytest.approx(expected)


def test_none_leaves_advantages_as_they_are() -> None:
    centred = torch.tensor([1.0, -2.0])
    assert SCALES["none"](centred, answers([1.0, 2.0])) is centred


def test_one_right_of_four_is_its_textbook_figure() -> None:
    told = answers([1.0, 0.0, 0.0, 0.0])
    found = SCALES["group"](told.rewards - 0.25, told)
    assert found.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_noise_of_fp32_is_no_spread(scale: str) -> None:
    """0.35 thrice, summed in different orders, differs by its last bit."""
    noise = torch.tensor([0.35, 0.35, 0.35]) + torch.tensor([0.0, 3e-8, -3e-8])
    assert len(set(noise.tolist())) > 1
    told = answers(noise.tolist())
    assert SCALES[scale](told.rewards - told.rewards.mean(), told).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize(("spread", "counts"), [(NO_SPREAD, False), (1.01 * NO_SPREAD, True)])
def test_a_millionth_is_the_smallest_spread(scale: str, spread: float, counts: bool) -> None:
    told = answers([0.0, spread])
    found = SCALES[scale](told.rewards - told.rewards.mean(), told)
    assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5] if counts else [0, 0])


def test_a_group_or_batch_of_one_has_no_spread() -> None:
    one = answers([3.0])
    assert SCALES["group"](one.rewards, one).tolist() == [0.0]
    assert SCALES["batch"](one.rewards, one).tolist() == [0.0]
    two = answers([1.0], [2.0])
    assert SCALES["batch"](two.rewards, two).tolist() == pytest.approx([2**0.5, 2 * 2**0.5])


def test_groups_without_spread_do_not_disturb_others() -> None:
    told = answers([1.0, 1.0], [0.0, 2.0])
    assert SCALES["group"](told.rewards - 1.0, told).tolist() == pytest.approx([0, 0, -(0.5**0.5), 0.5**0.5])


def test_a_constant_factor_on_rewards_is_gone() -> None:
    groups = torch.tensor([[0, 3, 7], [1, 2, 14]])
    one, ten = (answers_of(groups, factor * torch.arange(15, dtype=torch.float64)) for factor in (1.0, 10.0))
    for scale in ("group", "batch"):
        torch.testing.assert_close(SCALES[scale](one.rewards, one), SCALES[scale](ten.rewards, ten))
