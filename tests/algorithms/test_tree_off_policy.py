"""Samples of another policy: what corrections leave of the policy gradient, regressions that need none, and variances."""

from typing import Any

import pytest
import torch

from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.algorithms.baselines import soft_maximum
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.config import Correction
from rlhf_dist.learner.estimation import answer_advantages
from rlhf_dist.learner.mismatch import corrected
from tests.algorithms import tree
from tests.algorithms.tree import LENGTHS, POLICY, REWARDS, objective

CHANCES = tree.log_probs(POLICY).exp()
VALUE = float((CHANCES * REWARDS).sum())
EXACT = tree.gradient_of_mean(REWARDS)
AHEAD = torch.repeat_interleave(REWARDS - VALUE, LENGTHS)
"""[tokens], advantages under the policy's own value."""


def behaviour(distance: float) -> torch.Tensor:
    """Logits of a policy that sampled, so far from the one that learns."""
    noise = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return POLICY + distance * noise


def token_scores() -> torch.Tensor:
    """[tokens, logits], the gradient of each token's log-prob."""
    at = POLICY.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(x, at, retain_graph=True)[0].flatten() for x in tree.token_log_probs(at)])


SCORES = token_scores()


def correction_of(distance: float, settings: Correction) -> tuple[float, float]:
    """Relative error and standard deviation of a sample's gradient, through the surrogate and the correction's weights."""
    mu, old = (tree.token_log_probs(logits) for logits in (behaviour(distance), POLICY))
    new = old.clone().requires_grad_()
    losses = objective(surrogate="clip").surrogate(new, old, AHEAD, LENGTHS).loss
    (slopes,) = torch.autograd.grad(corrected(losses, old, mu, LENGTHS, settings).sum(), new)
    each = segment_sums(-slopes[:, None] * SCORES, LENGTHS)  # [15, logits]
    sampled = segment_sums(mu, LENGTHS).exp()
    mean = (sampled[:, None] * each).sum(0)
    spread = (sampled[:, None] * (each - mean).square()).sum()
    return float((mean - EXACT).norm() / EXACT.norm()), float(spread.sqrt() / EXACT.norm())


DISTANCES = (0.05, 0.3, 1.0)
"""0.001, 0.05 and 0.46 nats from the sampler to the policy."""


@pytest.mark.parametrize(
    ("settings", "errors", "deviation"),
    [
        ({}, (0.0587, 0.3608, 1.0077), 3.21),
        ({"weight": "token", "cap": 1e9}, (0.0389, 0.2398, 0.6787), 7.86),
        ({"weight": "token"}, (0.0389, 0.2411, 0.8203), 2.69),
        ({"weight": "token", "outside": "zero", "floor": 0.5, "cap": 5.0}, (0.0389, 0.2398, 0.9465), 2.44),
        ({"weight": "sequence", "cap": 1e9}, (0.0, 0.0, 0.0), 8.69),
        ({"weight": "sequence"}, (0.0, 0.0013, 0.5566), 2.37),
        ({"weight": "sequence", "outside": "zero", "floor": 0.5}, (0.0, 0.3813, 0.7990), 1.49),
        ({"weight": "sequence", "outside": "zero", "cap": 3.0}, (0.0, 0.0, 0.7328), 1.65),
        ({"reject": (0.99, 1.01)}, (0.8179, 1.0, 1.0), 0.0),
    ],
)
def test_what_a_correction_leaves_of_the_gradient(
    settings: dict[str, Any], errors: tuple[float, ...], deviation: float
) -> None:
    for distance, error in zip(DISTANCES, errors, strict=True):
        assert correction_of(distance, Correction(**settings))[0] == pytest.approx(error, abs=5.1e-5)
    assert correction_of(DISTANCES[-1], Correction(**settings))[1] == pytest.approx(deviation, abs=5.1e-3)


def test_weights_of_whole_answers_are_exact_to_rounding() -> None:
    for distance in DISTANCES:
        assert correction_of(distance, Correction(weight="sequence", cap=1e9))[0] < 1e-10


def test_a_clip_that_starts_from_the_sampler_corrects_nothing_beyond_its_bounds() -> None:
    mu, old = (tree.token_log_probs(logits) for logits in (behaviour(1.0), POLICY))
    new = old.clone().requires_grad_()
    losses = objective(surrogate="clip").surrogate(new, mu, AHEAD, LENGTHS).loss
    (slopes,) = torch.autograd.grad(losses.sum(), new)
    found = (
        torch.repeat_interleave(segment_sums(mu, LENGTHS).exp(), LENGTHS)[:, None] * -slopes[:, None] * SCORES
    ).sum(0)
    assert float((found - EXACT).norm() / EXACT.norm()) == pytest.approx(0.8395, abs=5e-5)


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("sampler", ["policy", "other", "even"])
def test_the_regression_on_the_optimal_value_reaches_the_optimum_whatever_sampled(tau: float, sampler: str) -> None:
    even = torch.full((15,), 1 / 15, dtype=torch.float64)
    sampled = {"policy": CHANCES, "other": tree.log_probs(behaviour(1.0)).exp(), "even": even}[sampler]
    ref = tree.token_log_probs(tree.logits_of(even.log()))  # all answers alike, so that a mean over them is V*'s
    told = objective(
        baseline="optimal_value",
        surrogate="squared",
        anchor="reference",
        tau=tau,
        aggregate="sequence_mean",
        kl_coef=0.0,
    )
    answers = tree.answers_of(torch.arange(15)[:, None], REWARDS, given=soft_maximum(REWARDS, tau=tau))
    advantages = torch.repeat_interleave(answer_advantages(answers, told)[1], LENGTHS)
    at = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [at], max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = told.surrogate(tree.token_log_probs(at), ref, advantages, LENGTHS).loss
        loss = (sampled * segment_sums(losses, LENGTHS) / LENGTHS).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert tree.distance(tree.log_probs(at.detach()), (REWARDS / tau).log_softmax(0)) < 1e-6


def variance(name: str, rewards: torch.Tensor, *, given: float = 0.0, scale: str = "none", size: int = 4) -> float:
    """Trace of the covariance of one group's gradient, exactly."""
    groups = tree.groups_of(size)
    answers = tree.answers_of(groups, rewards, given=given)
    advantages = tree.advantages_of(groups, objective(baseline=name, scale=scale), answers)
    scores = segment_sums(SCORES, LENGTHS)
    each = sum(advantages[:, i, None] * scores[groups[:, i]] for i in range(size)) / size  # [groups, logits]
    chances = tree.log_probs(POLICY)[groups].sum(1).exp()
    mean = chances @ each
    return float(chances @ (each - mean).square().sum(1))


def test_variances_of_baselines_rank_as_theory_has_it() -> None:
    weights = segment_sums(SCORES, LENGTHS).square().sum(1)
    best = float((CHANCES * weights * REWARDS).sum() / (CHANCES * weights).sum())
    greedy = float(REWARDS[CHANCES.argmax()])
    of = {name: variance(name, REWARDS) for name in ("none", "leave_one_out", "group_mean")}
    of |= {
        name: variance("optimal_value", REWARDS, given=b)
        for name, b in {"best": best, "value": VALUE, "greedy": greedy}.items()
    }
    assert of["best"] < of["value"] < of["none"] < of["leave_one_out"] < of["greedy"]
    figures = {"best": 0.253, "value": 0.262, "none": 0.340, "leave_one_out": 0.346, "greedy": 0.403}
    # The reference's figures are of 60,000 samples.
    assert of == pytest.approx({**figures, "group_mean": 0.75**2 * of["leave_one_out"]}, rel=0.02)


def test_a_constant_on_the_rewards_adds_variance_where_nothing_is_compared_and_nowhere_else() -> None:
    shifted = REWARDS + 3.0
    for name in ("leave_one_out", "group_mean"):
        assert variance(name, shifted) == pytest.approx(variance(name, REWARDS))
    assert variance("none", shifted) > 2 * variance("leave_one_out", shifted)


PROMPTS, ARMS, SIZE, DRAWS = 16, 8, 4, 800


def noise_over_signal(shift: float, spread: float) -> dict[str, float]:
    """Variance over squared signal of a batch of 16 prompts × 4 answers of one token, by baseline; seeded samples."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(PROMPTS, ARMS, dtype=torch.float64, generator=generator)
    chances = logits.softmax(1)
    rewards = 0.5 * torch.randn(PROMPTS, ARMS, dtype=torch.float64, generator=generator) + shift
    rewards = rewards + spread * torch.linspace(-1, 1, PROMPTS, dtype=torch.float64)[:, None]
    values = (chances * rewards).sum(1)
    exact = chances * (rewards - values[:, None]) / PROMPTS
    rows = chances.repeat(DRAWS, 1)  # [draws × prompts, arms]
    picked = torch.multinomial(rows, SIZE, replacement=True, generator=generator).view(DRAWS, PROMPTS, SIZE)
    got = rewards.expand(DRAWS, -1, -1).gather(2, picked)
    scores = torch.nn.functional.one_hot(picked, ARMS).double() - chances[None, :, None]
    ones = torch.ones(PROMPTS * SIZE, dtype=torch.int64)
    groups = torch.arange(PROMPTS).repeat_interleave(SIZE)
    greedy = rewards.gather(1, chances.argmax(1, keepdim=True))[:, 0]

    def measured(name: str, scale: str, given: torch.Tensor) -> float:
        told, of_rows = objective(baseline=name, scale=scale), given.repeat_interleave(SIZE)
        each = [answer_advantages(AnswerBatch(own.flatten(), ones, groups, of_rows), told)[1] for own in got]
        found = (torch.stack(each).view(DRAWS, PROMPTS, SIZE, 1) * scores).mean(2) / PROMPTS
        projection = float((found.mean(0) * exact).sum() / exact.square().sum())
        return float(found.var(0).sum()) / projection**2 / float(exact.square().sum())

    kinds = {"none": ("none", "none", values), "batch": ("batch_mean", "none", values)}
    kinds |= {"loo": ("leave_one_out", "none", values), "mean": ("group_mean", "none", values)}
    kinds |= {"value": ("optimal_value", "none", values), "greedy": ("greedy", "none", greedy)}
    kinds |= {"std": ("group_mean", "group", values)}
    return {name: measured(*kind) for name, kind in kinds.items()}


def test_one_baseline_for_all_prompts_fits_prompts_that_are_alike() -> None:
    alike = noise_over_signal(0.0, 0.0)
    assert alike["value"] < min(alike["none"], alike["batch"])
    assert max(alike["none"], alike["batch"]) < 1.1 * alike["loo"]
    assert alike["loo"] < min(alike["std"], alike["greedy"])
    assert alike["mean"] == pytest.approx(alike["loo"], rel=1e-9)


def test_it_does_not_fit_prompts_that_differ_and_none_does_not_fit_rewards_far_from_zero() -> None:
    apart, far = noise_over_signal(0.0, 2.0), noise_over_signal(3.0, 0.0)
    assert apart["value"] < apart["loo"] < min(apart["greedy"], apart["std"])
    assert min(apart["none"], apart["batch"]) > 4 * apart["loo"]
    assert far["value"] < far["loo"] < min(far["greedy"], far["std"])
    assert far["batch"] < far["loo"] < 0.1 * far["none"]
