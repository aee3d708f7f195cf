"""The expected gradient of every estimate, by summing over all groups of answers, against the policy gradient itself."""

from functools import cache
from math import comb

import pytest
import torch

from rlhf_dist.algorithms.advantages import moments, whiten
from rlhf_dist.algorithms.aggregation import answer_weights
from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.learner.estimation import answer_advantages
from rlhf_dist.learner.objective import RLObjective
from tests.algorithms import tree
from tests.algorithms.tree import LENGTHS, POLICY, REWARDS, cosine, gradient_of_mean, groups_of, objective

G = 3
EXACT = gradient_of_mean(REWARDS)
BINARY = (REWARDS > 0.3).double()


@cache
def _weights(kind: str, lengths: tuple[int, ...]) -> torch.Tensor:
    return answer_weights(kind, torch.tensor(lengths), torch.zeros(len(lengths)).long(), longest=tree.LONGEST)


def descent(advantages: torch.Tensor, told: RLObjective, groups: torch.Tensor) -> torch.Tensor:
    """What a step goes along: E over groups of the loss's gradient, down; each group is a mini-batch. Advantages are [tokens]."""
    at = POLICY.clone().requires_grad_()
    flat, lengths = groups.flatten(), LENGTHS[groups.flatten()]
    new = tree.token_log_probs(at)[tree.tokens_of(flat)]
    losses = told.surrogate(new, new.detach(), advantages, lengths).loss
    chances = tree.log_probs(POLICY)[groups].sum(1).exp()
    weights = torch.cat([_weights(told.algorithm.aggregate, tuple(LENGTHS[group].tolist())) for group in groups])
    scale = tree.LONGEST if told.algorithm.aggregate == "fixed_length" else 1.0
    of_answers = chances.repeat_interleave(groups.shape[1]) * weights * scale
    return -tree.gradient((torch.repeat_interleave(of_answers, lengths) * losses).sum(), at)


def expected(
    told: RLObjective, *, rewards: torch.Tensor = REWARDS, size: int = G, given: float = 0.0, running: float = 0.0
) -> torch.Tensor:
    groups = groups_of(size)
    answers = tree.answers_of(groups, rewards, given=given, running=running)
    advantages = tree.advantages_of(groups, told, answers)
    return descent(torch.repeat_interleave(advantages.flatten(), answers.lengths), told, groups)


def test_the_tree_has_15_answers_whose_chances_add_up() -> None:
    assert len(tree.ANSWERS) == 15
    assert POLICY.numel() == 21
    assert float(tree.log_probs(POLICY).exp().sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("name", ["leave_one_out", "none", "running_mean", "greedy", "optimal_value"])
def test_the_expected_gradient_is_exact_under_a_baseline_that_does_not_know_the_answer(name: str) -> None:
    found = expected(objective(baseline=name), given=-1.2, running=0.7)
    torch.testing.assert_close(found, EXACT, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_mean_of_the_group_takes_one_gth_off_the_gradient(size: int) -> None:
    found = expected(objective(baseline="group_mean"), size=size)
    torch.testing.assert_close(found, (1 - 1 / size) * EXACT, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["clip", "weight_cap", "soft_gate"])
def test_at_ratio_one_the_surrogate_makes_no_difference(name: str) -> None:
    found = expected(objective(baseline="leave_one_out", surrogate=name))
    torch.testing.assert_close(found, EXACT, rtol=0, atol=1e-10)


def test_the_squared_loss_at_its_anchor_is_the_policy_gradient() -> None:
    told = objective(baseline="group_mean", surrogate="squared", aggregate="sequence_mean", tau=0.3)
    torch.testing.assert_close(expected(told), (1 - 1 / G) * EXACT, rtol=0, atol=1e-10)


def test_the_standard_deviation_of_the_group_and_the_length_weighted_mean_bend_the_gradient() -> None:
    scaled = expected(objective(baseline="group_mean", scale="group"))
    assert cosine(scaled, EXACT) == pytest.approx(0.9624, abs=5e-5)
    assert float(scaled @ EXACT / (EXACT @ EXACT)) == pytest.approx(0.7214, abs=5e-5)
    assert cosine(expected(objective(baseline="length_weighted")), EXACT) == pytest.approx(0.9891, abs=5e-5)


def test_a_batch_of_one_group_is_as_that_group_and_a_large_one_bends_nothing() -> None:
    groups = groups_of(G)
    alone, of_group = (objective(baseline=each, scale=scale) for each, scale in BATCH_AND_GROUP)
    one_by_one = torch.stack([answer_advantages(tree.answers_of(each[None], REWARDS), alone)[1] for each in groups])
    torch.testing.assert_close(
        one_by_one, tree.advantages_of(groups, of_group, tree.answers_of(groups, REWARDS)), rtol=0, atol=1e-10
    )
    together = expected(objective(baseline="leave_one_out", scale="batch"))
    assert cosine(together, EXACT) == pytest.approx(1.0, abs=1e-12)


BATCH_AND_GROUP = (("batch_mean", "batch"), ("group_mean", "group"))


def weight_of(told: RLObjective, p: float, size: int) -> float:
    """How many times the gradient of p a prompt with pass rate p has in the expected gradient: E A given right less wrong."""
    total = 0.0
    for others in range(size):
        chance = comb(size - 1, others) * p**others * (1 - p) ** (size - 1 - others)
        for own in (1.0, 0.0):
            rewards = torch.tensor([own] + [1.0] * others + [0.0] * (size - 1 - others), dtype=torch.float64)
            ones = torch.ones(size, dtype=torch.int64)
            advantages = answer_advantages(AnswerBatch(rewards, ones, 0 * ones, 0 * rewards), told)[1]
            total += (2 * own - 1) * chance * float(advantages[0])
    return total


@pytest.mark.parametrize(
    ("size", "by_rate"),
    [
        (4, {0.02: 1.492, 0.1: 1.464, 0.3: 1.416, 0.5: 1.400, 0.9: 1.464}),
        (8, {0.02: 2.407, 0.1: 2.177, 0.3: 1.836, 0.5: 1.736, 0.7: 1.836, 0.98: 2.407}),
        (16, {0.02: 3.489, 0.1: 2.757, 0.3: 2.026, 0.5: 1.873}),
    ],
)
def test_the_spread_weighs_prompts_by_difficulty(size: int, by_rate: dict[float, float]) -> None:
    for p, expected_weight in by_rate.items():
        told = objective(baseline="group_mean", scale="group")
        assert weight_of(told, p, size) == pytest.approx(expected_weight, abs=1e-3)
        assert weight_of(objective(baseline="leave_one_out"), p, size) == pytest.approx(1.0, abs=1e-12)
        assert weight_of(objective(baseline="group_mean"), p, size) == pytest.approx(1 - 1 / size, abs=1e-12)


def test_with_binary_rewards_the_spread_keeps_the_direction_and_has_that_weight() -> None:
    exact, told = gradient_of_mean(BINARY), objective(baseline="group_mean", scale="group")
    rate = float((tree.log_probs(POLICY).exp() * BINARY).sum())
    found = expected(told, rewards=BINARY)
    torch.testing.assert_close(found, weight_of(told, rate, G) * exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "cos"), [("fixed_length", 1.0), ("token_mean", 0.9918), ("prompt_mean", 0.9918), ("sequence_mean", 0.8897)]
)
def test_how_tokens_are_added_up_decides_whether_length_bends_the_gradient(kind: str, cos: float) -> None:
    assert cosine(expected(objective(baseline="leave_one_out", aggregate=kind)), EXACT) == pytest.approx(cos, abs=5e-5)


def test_a_mean_over_answers_of_an_answers_mean_ratio_weighs_by_length_too() -> None:
    told = objective(baseline="leave_one_out", surrogate="sequence_clip", aggregate="sequence_mean")
    assert cosine(expected(told), EXACT) == pytest.approx(0.8897, abs=5e-5)


def test_whitening_the_tokens_of_a_group_bends_most() -> None:
    groups, told = groups_of(G), objective(baseline="group_mean", aggregate="token_mean")
    raw = tree.advantages_of(groups, told, tree.answers_of(groups, REWARDS))
    parts = []
    for group, own in zip(groups, raw, strict=True):
        tokens = torch.repeat_interleave(own, LENGTHS[group])
        parts.append(whiten(tokens, moments(tokens), spread=float(tokens.max() - tokens.min())))
    assert cosine(descent(torch.cat(parts), told, groups), EXACT) == pytest.approx(0.8449, abs=5e-5)


def test_a_constant_on_all_rewards_moves_no_group_baseline() -> None:
    for told in (objective(baseline="leave_one_out"), objective(baseline="group_mean", scale="group")):
        torch.testing.assert_close(expected(told), expected(told, rewards=REWARDS + 7.0), rtol=0, atol=1e-10)
