"""Where the KL and the entropy are put, and what is then climbed: expected gradients and optima by enumeration."""

import pytest
import torch

from rlhf_dist.algorithms.baselines import soft_maximum
from rlhf_dist.algorithms.entropy import EntropyCoefficient
from rlhf_dist.algorithms.kl import ESTIMATORS, k1, k3, kl_losses, shaped_rewards
from rlhf_dist.algorithms.ragged import segment_sums, sums_to_go
from tests.algorithms import tree
from tests.algorithms.tree import LENGTHS, POLICY, REFERENCE, REWARDS, cosine, objective

BETA = 0.5
REF = tree.token_log_probs(REFERENCE)
CHANCES = tree.log_probs(POLICY).exp()
AT = POLICY.clone().requires_grad_()
REVERSE = tree.gradient(tree.kl(tree.log_probs(AT), tree.log_probs(REFERENCE)), AT)
FORWARD = tree.gradient(tree.kl(tree.log_probs(REFERENCE), tree.log_probs(AT)), AT)


def expected(losses: torch.Tensor, at: torch.Tensor, chances: torch.Tensor = CHANCES) -> torch.Tensor:
    """Gradient of losses [tokens], each answer as often as it is sampled."""
    return tree.gradient((chances * segment_sums(losses, LENGTHS)).sum(), at)


def kl_gradient(estimator: str, *, exact: bool) -> torch.Tensor:
    at = POLICY.clone().requires_grad_()
    new = tree.token_log_probs(at)
    return expected(kl_losses(new, new.detach(), REF, LENGTHS, estimator=estimator, exact=exact), at)


def by_score(rewards: torch.Tensor, *, to_go: bool) -> torch.Tensor:
    """The policy gradient of token rewards [tokens], whole sums or to go."""
    at = POLICY.clone().requires_grad_()
    whole = torch.repeat_interleave(segment_sums(rewards, LENGTHS), LENGTHS)
    return expected((sums_to_go(rewards, LENGTHS) if to_go else whole) * tree.token_log_probs(at), at)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_with_its_score_term_an_estimate_of_the_kl_has_the_kls_gradient(estimator: str) -> None:
    torch.testing.assert_close(kl_gradient(estimator, exact=True), REVERSE, rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_with_its_score_term_any_estimate_has_the_gradient_of_its_expectation(estimator: str) -> None:
    at = POLICY.clone().requires_grad_()
    values = segment_sums(ESTIMATORS[estimator](tree.token_log_probs(at), REF), LENGTHS)
    of_expectation = tree.gradient((tree.log_probs(at).exp() * values).sum(), at)
    torch.testing.assert_close(kl_gradient(estimator, exact=True), of_expectation, rtol=0, atol=1e-10)


def test_without_it_k1_has_none_and_k2_and_k3_miss_where_tokens_lead() -> None:
    assert float(kl_gradient("k1", exact=False).norm()) < 1e-12
    k2_own, k3_own = (kl_gradient(estimator, exact=False) for estimator in ("k2", "k3"))
    assert cosine(k2_own, REVERSE) == pytest.approx(0.8477, abs=5e-5)
    assert float(k2_own.norm() / REVERSE.norm()) == pytest.approx(0.7019, abs=5e-5)
    assert cosine(k3_own, REVERSE) == pytest.approx(0.8299, abs=5e-5)
    assert relative(k3_own, FORWARD) == pytest.approx(0.481, abs=5e-4)


def test_k2_on_tokens_is_the_exact_kl_of_tokens_with_the_states_held_fixed() -> None:
    at = POLICY.clone().requires_grad_()
    every, ref = torch.log_softmax(at, -1), torch.log_softmax(REFERENCE, -1)
    of_states = (every.exp() * (every - ref)).sum(-1)[tree.STATES]
    torch.testing.assert_close(kl_gradient("k2", exact=False), expected(of_states, at), rtol=0, atol=1e-10)


def test_of_whole_answers_k2_has_the_reverse_kls_gradient_and_k3_the_forward_kls() -> None:
    ones, ref = torch.ones(15, dtype=torch.int64), tree.log_probs(REFERENCE)
    for estimator, exact in (("k2", REVERSE), ("k3", FORWARD)):
        at = POLICY.clone().requires_grad_()
        whole = tree.log_probs(at)
        losses = kl_losses(whole, whole.detach(), ref, ones, estimator=estimator, exact=False)
        torch.testing.assert_close(tree.gradient((CHANCES * losses).sum(), at), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("to_go", [False, True])
def test_k1_in_the_reward_is_exact_whole_or_to_go_and_k3_there_is_wrong(to_go: bool) -> None:
    own, zero = tree.token_log_probs(POLICY), torch.zeros_like(REF)
    found = by_score(shaped_rewards(zero, k1(own, REF), coefficient=1.0), to_go=to_go)
    torch.testing.assert_close(-found, REVERSE, rtol=0, atol=1e-10)
    wrong = -by_score(shaped_rewards(zero, k3(own, REF), coefficient=1.0), to_go=to_go)
    assert cosine(wrong, REVERSE) == pytest.approx(0.8422, abs=5e-5)
    assert relative(wrong, REVERSE) == pytest.approx(0.588, abs=5e-4)


@pytest.mark.parametrize(("estimator", "exact"), [("k1", True), ("k3", True), ("k2", False)])
def test_of_one_decision_the_loss_is_exact_also_off_policy(estimator: str, exact: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, old, ref = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(3))
    old, ref = old.log_softmax(0), ref.log_softmax(0)
    at = logits.requires_grad_()
    new, ones = at.log_softmax(0), torch.ones(5, dtype=torch.int64)
    losses = kl_losses(new, old, ref, ones, estimator=estimator, exact=exact)
    weights = old.exp() if exact else new.detach().exp()  # k2's own takes the ratio held fixed
    found = tree.gradient((weights * losses).sum(), at)
    torch.testing.assert_close(found, tree.gradient(tree.kl(at.log_softmax(0), ref), at), rtol=0, atol=1e-10)


def leave_one_out(token_rewards: torch.Tensor) -> torch.Tensor:
    """Leave-one-out's expected gradient of token rewards [tokens], over all groups of 3."""
    told, groups = objective(baseline="leave_one_out"), tree.groups_of(3)
    whole = segment_sums(token_rewards, LENGTHS)
    advantages = tree.advantages_of(groups, told, tree.answers_of(groups, whole))
    chances = tree.log_probs(POLICY)[groups].sum(1).exp()
    at = POLICY.clone().requires_grad_()
    return tree.gradient((chances[:, None] / 3 * advantages * tree.log_probs(at)[groups]).sum(), at)


def scores() -> torch.Tensor:
    """[tokens], each answer's reward with its last token."""
    found = torch.zeros_like(REF)
    found[LENGTHS.cumsum(0) - 1] = REWARDS
    return found


def test_leave_one_out_climbs_reward_less_kl_and_reward_plus_entropy() -> None:
    own = tree.token_log_probs(POLICY)
    at = POLICY.clone().requires_grad_()
    whole = tree.log_probs(at)
    reward = (whole.exp() * REWARDS).sum()
    for kl, pull in ((k1(own, REF), tree.kl(whole, tree.log_probs(REFERENCE))), (own, (whole.exp() * whole).sum())):
        (exact,) = torch.autograd.grad(reward - 0.3 * pull, at, retain_graph=True)
        found = leave_one_out(shaped_rewards(scores(), kl, coefficient=0.3))
        torch.testing.assert_close(found, exact.flatten(), rtol=0, atol=1e-10)


def test_at_the_optimum_every_advantage_of_every_sample_is_zero() -> None:
    star, value = tree.optimum(REFERENCE, REWARDS, BETA)
    own = tree.token_log_probs(tree.logits_of(star))
    torch.testing.assert_close(segment_sums(own, LENGTHS), star, rtol=0, atol=1e-12)
    whole = segment_sums(shaped_rewards(scores(), k1(own, REF), coefficient=BETA), LENGTHS)
    torch.testing.assert_close(whole, torch.full_like(whole, value), rtol=0, atol=1e-12)
    groups = tree.groups_of(2)
    for name in ("leave_one_out", "group_mean", "length_weighted", "batch_mean", "optimal_value", "greedy"):
        for scale in ("none", "group", "batch"):
            answers = tree.answers_of(groups, whole, given=value)
            found = tree.advantages_of(groups, objective(baseline=name, scale=scale), answers)
            assert float(found.abs().max()) < 1e-12, (name, scale)


def test_the_value_of_the_optimum_is_the_soft_maximum_of_rewards_under_the_reference() -> None:
    star, value = tree.optimum(REFERENCE, REWARDS, BETA)
    climbed = float((star.exp() * REWARDS).sum() - BETA * tree.kl(star, tree.log_probs(REFERENCE)))
    assert climbed == pytest.approx(value, abs=1e-12)
    assert value == pytest.approx(0.1559, abs=5e-5)
    even = tree.logits_of(torch.full((15,), 1 / 15, dtype=torch.float64).log())
    assert soft_maximum(REWARDS, tau=BETA) == pytest.approx(tree.optimum(even, REWARDS, BETA)[1], abs=1e-12)


def test_exact_steps_of_leave_one_out_reach_the_optimum() -> None:
    star, _ = tree.optimum(REFERENCE, REWARDS, BETA)
    logits = REFERENCE.clone()
    for _ in range(800):
        own = tree.token_log_probs(logits)
        whole = segment_sums(shaped_rewards(scores(), k1(own, REF), coefficient=BETA), LENGTHS)
        logits = logits + 2.0 * tree.gradient_of_mean(whole, logits).view_as(logits)
    assert tree.distance(tree.log_probs(logits), star) < 1e-3


def test_k3_in_the_loss_of_one_decision_settles_elsewhere() -> None:
    generator = torch.Generator().manual_seed(4)
    rewards, ref = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(2))
    ref, ones = ref.log_softmax(0), torch.ones(5, dtype=torch.int64)
    at = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([at], lr=3.0)
    for _ in range(1500):
        new = at.log_softmax(0)
        kl = kl_losses(new, new.detach(), ref, ones, estimator="k3", exact=False)
        ((new.detach().exp() * (BETA * kl - rewards * new)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    settled = at.detach().log_softmax(0)
    # p (V - r) + beta (p - q) = 0, where V makes chances add up: p = beta q / (beta + V - r)
    value = float((settled.exp() * rewards).sum())
    formula = BETA * ref.exp() / (BETA + value - rewards)
    torch.testing.assert_close(settled.exp(), formula, rtol=0, atol=1e-6)
    assert tree.distance(settled, (ref + rewards / BETA).log_softmax(0)) > 0.05


def test_dual_ascent_reaches_a_target_entropy() -> None:
    coefficient = EntropyCoefficient(0.01, target=0.6, lr=0.3)
    entropy = 0.0
    for _ in range(400):
        chances = torch.softmax(REWARDS / coefficient.coefficient, 0)  # maximises E r + c H
        entropy = float(torch.special.entr(chances).sum() / (chances * LENGTHS).sum())  # nats per token
        coefficient.update(entropy)
    assert entropy == pytest.approx(0.6, abs=1e-6)
