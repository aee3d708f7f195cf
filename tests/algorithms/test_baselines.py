"""Baselines against loops over groups; they do not depend on order, and of one prompt twice they make two groups."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.answers import AnswerBatch, group_means, group_spreads, group_sums
from rlhf_dist.algorithms.baselines import BASELINES, RunningMean, best_of_group, soft_maximum

GROUPS = st.lists(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=2, max_size=5), min_size=1, max_size=5
)


def answers(groups: list[list[tuple[float, int]]], *, running: float = 0.25) -> AnswerBatch:
    """Groups beside each other."""
    flat = [each for group in groups for each in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    return AnswerBatch(
        torch.tensor([reward for reward, _ in flat], dtype=torch.float64),
        torch.tensor([length for _, length in flat]),
        torch.tensor(numbers),
        0.5 * torch.tensor(numbers, dtype=torch.float64),
        running,
    )


def slow(name: str, groups: list[list[tuple[float, int]]]) -> list[float]:
    everything = fmean(reward for group in groups for reward, _ in group)
    found = []
    for number, group in enumerate(groups):
        rewards = [reward for reward, _ in group]
        weighted = sum(reward * length for reward, length in group) / sum(length for _, length in group)
        for own in range(len(group)):
            others = [reward for other, reward in enumerate(rewards) if other != own]
            by_name = {"none": 0.0, "leave_one_out": fmean(others), "group_mean": fmean(rewards)}
            by_name |= {"length_weighted": weighted, "batch_mean": everything, "running_mean": 0.25}
            found.append((by_name | {"greedy": 0.5 * number, "optimal_value": 0.5 * number})[name])
    return found


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=25)
@given(groups=GROUPS)
def test_a_baseline_is_its_formula(name: str, groups: list[list[tuple[float, int]]]) -> None:
    found = BASELINES[name](answers(groups))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(slow(name, groups), abs=1e-12)


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=25)
@given(groups=GROUPS, seed=st.integers(0, 1000))
def test_the_order_of_answers_does_not_matter(name: str, groups: list[list[tuple[float, int]]], seed: int) -> None:
    whole = answers(groups)
    order = torch.randperm(len(whole.rewards), generator=torch.Generator().manual_seed(seed))
    moved = AnswerBatch(*(each[order] for each in whole[:4]), whole.running_mean)
    torch.testing.assert_close(BASELINES[name](moved), BASELINES[name](whole)[order])


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean", "length_weighted"])
def test_a_prompt_that_comes_twice_is_two_groups(name: str) -> None:
    once = [(1.0, 1), (2.0, 3)]
    found = BASELINES[name](answers([once, [(9.0, 1), (8.0, 1)]]))
    assert found[:2].tolist() == BASELINES[name](answers([once])).tolist()


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean", "length_weighted", "batch_mean"])
@settings(max_examples=25)
@given(groups=GROUPS, constant=st.floats(-5, 5))
def test_a_constant_on_all_rewards_is_in_the_baseline(
    name: str, groups: list[list[tuple[float, int]]], constant: float
) -> None:
    shifted = answers([[(reward + constant, length) for reward, length in group] for group in groups])
    torch.testing.assert_close(BASELINES[name](shifted), BASELINES[name](answers(groups)) + constant, rtol=0, atol=1e-9)


@settings(max_examples=25)
@given(groups=GROUPS)
def test_leave_one_out_is_a_multiple_of_the_distance_from_the_mean(groups: list[list[tuple[float, int]]]) -> None:
    told = answers(groups)
    size = told.counts[told.groups].double()
    found = told.rewards - BASELINES["leave_one_out"](told)
    mean = told.rewards - BASELINES["group_mean"](told)
    torch.testing.assert_close(found, size / (size - 1) * mean, rtol=0, atol=1e-9)


def test_leave_one_out_of_three_by_hand() -> None:
    found = BASELINES["leave_one_out"](answers([[(1.0, 1), (2.0, 1), (6.0, 1)]]))
    assert found.tolist() == [4.0, 3.5, 1.5]


def test_the_best_of_a_group_is_one_and_the_first_of_equals() -> None:
    told = answers([[(1.0, 1), (3.0, 1), (3.0, 1)], [(-2.0, 1), (-1.0, 1)]])
    assert best_of_group(told).tolist() == [0, 1, 0, 0, 1]
    moved = told._replace(groups=torch.tensor([1, 0, 1, 0, 1]))
    assert best_of_group(moved).tolist() == [0, 1, 1, 0, 0]


@settings(max_examples=25)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.1, 10))
def test_the_soft_maximum_is_its_formula_between_mean_and_maximum(rewards: list[float], tau: float) -> None:
    found = soft_maximum(torch.tensor(rewards, dtype=torch.float64), tau=tau)
    assert found == pytest.approx(tau * math.log(fmean(math.exp(r / tau) for r in rewards)), abs=1e-9)
    assert fmean(rewards) - 1e-9 <= found <= max(rewards) + 1e-9


def test_the_soft_maximum_does_not_overflow() -> None:
    assert soft_maximum(torch.tensor([1000.0, 0.0]), tau=0.1) == pytest.approx(1000 - 0.1 * math.log(2))


def test_a_running_mean_is_0_then_the_first_then_decayed() -> None:
    mean = RunningMean(0.75)
    assert mean.value == 0.0
    mean.update(4.0)
    assert mean.value == pytest.approx(4.0), "corrected for its start"
    mean.update(8.0)
    assert mean.value == pytest.approx((0.75 * 4 + 8) / 1.75)
    again = RunningMean(0.75, total=mean.total, weight=mean.weight)
    for each in (mean, again):
        each.update(-1.0)
    assert again.value == mean.value


@settings(max_examples=25)
@given(st.floats(0, 0.99), st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_a_running_mean_weighs_by_age(decay: float, means: list[float]) -> None:
    running = RunningMean(decay)
    for each in means:
        running.update(each)
    weights = [decay**age for age in reversed(range(len(means)))]
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert running.value == pytest.approx(expected, abs=1e-9)


def test_sums_means_and_spreads_of_groups() -> None:
    values, groups = torch.tensor([1.0, 2.0, 4.0, -3.0]), torch.tensor([1, 0, 1, 1])
    assert group_sums(values, groups).tolist() == [2, 2]
    assert group_means(values, groups).tolist() == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])
    assert group_spreads(values, groups).tolist() == [0, 7]
    assert group_spreads(values.float(), groups).dtype == torch.float64
    nothing = torch.zeros(0)
    for function in (group_sums, group_spreads):
        assert function(nothing, nothing.long()).shape == (0,)
    told = AnswerBatch(values, groups, groups, values)
    assert told.counts.tolist() == [1, 3]
    assert told.running_mean == 0.0
