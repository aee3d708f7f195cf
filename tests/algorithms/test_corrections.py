"""Weights and rejections against a loop over answers."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.bounds import MOST_NATS
from rlhf_dist.algorithms.corrections import bounded, importance_weights, kept_answers
from rlhf_dist.config import Correction
from rlhf_dist.learner import mismatch

MODES: list[dict[str, Any]] = [
    {},
    {"weight": "token"},
    {"weight": "token", "cap": 1.2},
    {"weight": "sequence"},
    {"weight": "token", "outside": "zero", "floor": 0.5},
    {"weight": "sequence", "outside": "zero", "floor": 0.8, "cap": 1.1},
    {"reject": (0.9, 1.1)},
    {"veto": 0.7},
    {"weight": "sequence", "reject": (0.8, 1.3), "veto": 0.5},
]
RATIOS = st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=5)


class Made(NamedTuple):
    weights: torch.Tensor
    kept: torch.Tensor


def corrected(proximal: torch.Tensor, rollout: torch.Tensor, lengths: torch.Tensor, told: Correction) -> Made:
    """Weight of each token, and whether it is kept, made of the formulas; the update makes the same of them."""
    log_rho = proximal - rollout
    weights = torch.ones_like(log_rho)
    if told.weight != "none":
        rho = importance_weights(log_rho, lengths, level=told.weight)
        weights = bounded(rho, cap=told.cap, floor=told.floor, outside=told.outside)
    kept = torch.repeat_interleave(kept_answers(log_rho, lengths, reject=told.reject, veto=told.veto), lengths)
    terms = -torch.arange(1.0, len(log_rho) + 1).to(log_rho)
    found = mismatch.corrected(terms, proximal, rollout, lengths, told)
    assert torch.equal(found, torch.where(kept, terms * weights, 0.0))
    return Made(weights, kept)


def slow(ratios: list[list[float]], told: Correction) -> tuple[list[float], list[bool]]:
    """Weight of each token, and whether it is kept, from the log-ratios of answers."""
    weights, kept = [], []
    for own in ratios:
        for x in own:
            rho = math.exp(sum(own) if told.weight == "sequence" else x)
            if told.weight == "none":
                rho = 1.0
            elif told.outside == "truncate":
                rho = min(rho, told.cap)
            elif not told.floor <= rho <= told.cap:
                rho = 0.0
            weights.append(rho)
        mean = math.exp(sum(own) / len(own))
        good = told.reject is None or told.reject[0] <= mean <= told.reject[1]
        good &= told.veto is None or all(math.exp(x) >= told.veto for x in own)
        kept += [good] * len(own)
    return weights, kept


def flat(ratios: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Proximal and rollout log-probs with these differences, and lengths."""
    lengths = torch.tensor([len(own) for own in ratios])
    differences = torch.tensor([x for own in ratios for x in own], dtype=torch.float64)
    rollout = -torch.arange(1.0, len(differences) + 1, dtype=torch.float64)
    return rollout + differences, rollout, lengths


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25)
@given(ratios=RATIOS)
def test_weights_and_rejections_equal_a_loop(mode: dict[str, Any], ratios: list[list[float]]) -> None:
    told = Correction(**mode)
    made = corrected(*flat(ratios), told)
    weights, kept = slow(ratios, told)
    assert made.weights.tolist() == pytest.approx(weights)
    assert made.kept.tolist() == kept


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 100))
def test_where_both_are_the_same_policy_all_modes_are_one_bit_for_bit(
    mode: dict[str, Any], lengths: list[int], seed: int
) -> None:
    log_probs = -3 * torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed))
    made = corrected(log_probs, log_probs, torch.tensor(lengths), Correction(**mode))
    assert torch.equal(made.weights, torch.ones_like(log_probs))
    assert made.kept.all()


def test_by_hand() -> None:
    told = flat([[math.log(3.0), math.log(0.4)], [math.log(0.5)]])

    def weights(**mode: Any) -> list[float]:
        return corrected(*told, Correction(**mode)).weights.tolist()

    assert weights(weight="token") == pytest.approx([2.0, 0.4, 0.5])
    assert weights(weight="token", cap=10) == pytest.approx([3.0, 0.4, 0.5])
    assert weights(weight="token", outside="zero", floor=0.45) == pytest.approx([0.0, 0.0, 0.5])
    assert weights(weight="sequence") == pytest.approx([1.2, 1.2, 0.5])
    assert weights(weight="sequence", outside="zero", floor=0.6) == pytest.approx([1.2, 1.2, 0.0])


def test_the_bounds_themselves_are_inside() -> None:
    log_two = torch.full((1,), 2.0, dtype=torch.float64).log()  # exactly what exponentiates to the bound, or next to it
    half, zero, one = -log_two, torch.zeros_like(log_two), torch.tensor([1])
    zeroed = Correction(weight="token", outside="zero", floor=float(half.exp()), cap=float(log_two.exp()))
    for ratio in (half, log_two):
        assert float(corrected(ratio, zero, one, zeroed).weights) == float(ratio.exp())
    told = Correction(reject=(float(half.exp()), float(log_two.exp())))
    assert all(bool(corrected(ratio, zero, one, told).kept) for ratio in (half, log_two))
    assert bool(corrected(half, zero, one, Correction(veto=float(half.exp()))).kept)


def test_one_bad_token_loses_its_answer_and_no_other() -> None:
    made = corrected(*flat([[0.0, -9.0, 0.0], [0.0], [0.0, 0.0]]), Correction(veto=1e-3))
    assert made.kept.tolist() == [False, False, False, True, True, True]
    assert made.weights.tolist() == [1.0] * 6, "what is kept does not weigh more for it"


def test_weights_stay_finite_however_far_the_policies_are() -> None:
    far = flat([[500.0, 400.0], [-500.0]])
    made = corrected(*far, Correction(weight="sequence", cap=1e12))
    most = math.exp(MOST_NATS)
    assert made.weights.tolist() == pytest.approx([most, most, 1 / most])


def test_answers_without_tokens_disturb_nothing() -> None:
    proximal, rollout, _ = flat([[0.5, 0.5]])
    made = corrected(proximal, rollout, torch.tensor([0, 2, 0]), Correction(reject=(0.9, 1.1)))
    assert made.kept.tolist() == [False, False]
