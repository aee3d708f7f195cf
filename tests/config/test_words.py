"""`--dry-run` says every setting that is in effect, and none that is not."""

from typing import Any

import pytest

from rlhf_dist.config import METHODS, Algorithm, Correction, RLConfig
from rlhf_dist.config.words import in_words

SQUARED = {"surrogate": "squared", "aggregate": "sequence_mean", "baseline": "group_mean", "whiten_advantages": False}
GROUPED = {"baseline": "group_mean", "whiten_advantages": False}
IN_LOSS = {"kl_in": "loss", "kl_coef": 0.1}
OTHERWISE: dict[str, tuple[dict[str, Any], Any]] = {
    "baseline": (GROUPED, "leave_one_out"),
    "scale": (GROUPED, "group"),
    "whiten_advantages": ({}, False),
    "credit": (GROUPED, "to_go"),
    "gamma": ({}, 0.9),
    "gae_lambda": ({}, 0.9),
    "gae_lambda_policy": ({}, 0.9),
    "gae_length_alpha": ({}, 0.1),
    "running_decay": ({**GROUPED, "baseline": "running_mean"}, 0.9),
    "reference_samples": ({**GROUPED, "baseline": "optimal_value"}, 4),
    "select": ({**GROUPED, "baseline": "none"}, "best"),
    "surrogate": ({}, "plain"),
    "clip_ratio": ({}, 0.1),
    "clip_ratio_high": ({}, 0.3),
    "dual_clip": ({}, 3.0),
    "weight_cap": ({"surrogate": "weight_cap"}, 4.0),
    "gate_temperature": ({"surrogate": "soft_gate"}, 2.0),
    "gate_temperature_negative": ({"surrogate": "soft_gate"}, 2.0),
    "tau": (SQUARED, 0.2),
    "anchor": ({**SQUARED, "kl_coef": 0.0}, "reference"),
    "aggregate": ({}, "prompt_mean"),
    "kl_coef": ({}, 0.1),
    "kl_in": ({}, "loss"),
    "kl_estimator": (IN_LOSS, "k3"),
    "kl_gradient": ({**IN_LOSS, "kl_estimator": "k2"}, "estimator"),
    "kl_target": ({}, 5.0),
    "kl_target_per": ({"kl_target": 5.0}, "token"),
    "kl_horizon": ({"kl_target": 5.0}, 9_000),
    "reference_every": ({}, 5),
    "reference_mix": ({"reference_every": 5}, 0.5),
    "entropy_coef": ({}, 0.1),
    "entropy_in": ({"entropy_coef": 0.1}, "reward"),
    "entropy_target": ({"entropy_coef": 0.1}, 1.5),
    "entropy_lr": ({"entropy_coef": 0.1, "entropy_target": 1.5}, 0.1),
    "score_clip": ({}, 3.0),
    "missing_eos_penalty": ({}, 1.0),
    "truncated": ({}, "mask"),
    "overlong_share": ({}, 0.2),
    "overlong_penalty": ({"overlong_share": 0.2}, 0.5),
    "filter_groups": ({}, True),
    "filter_rounds": ({"filter_groups": True}, 3),
    "positive_nll_coef": ({}, 0.1),
    "teacher_coef": ({"teacher_coef": 1.0}, 0.5),
    "clip_value": ({}, 0.1),
    "value_coef": ({}, 0.25),
    "critic_warmup": ({}, 5),
}
"""Field to what makes it effective, beside PPO's settings, and another value of it."""
OF_CORRECTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "proximal": ({}, "rollout"),
    "weight": ({}, "token"),
    "cap": ({"weight": "sequence"}, 5.0),
    "outside": ({"weight": "token"}, "zero"),
    "floor": ({"weight": "token", "outside": "zero"}, 0.5),
    "reject": ({}, (0.99, 1.01)),
    "veto": ({}, 1e-4),
}


def config(algorithm: dict[str, Any], correction: dict[str, Any] | None = None, **changes: Any) -> RLConfig:
    tree: dict[str, Any] = {
        "policy": "p",
        "reward": "r",
        "prompts": {"path": "x"},
        "rl": {"epochs": 2, "mini_batches": 2},
        "rollout": {"samples_per_prompt": 4},
        "algorithm": algorithm,
        "correction": correction or {},
    }
    if algorithm.get("teacher_coef") or algorithm.get("method") == "distill":
        tree["teacher"] = "t"
    return RLConfig.model_validate({**tree, **changes})


def but_for_the_method(found: RLConfig) -> list[str]:
    """Its words, without the line that lists whatever differs from a preset."""
    return in_words(found)[1:]


@pytest.mark.parametrize("name", sorted(Algorithm.model_fields.keys() - {"method"}))
def test_every_setting_of_the_algorithm_is_in_the_words(name: str) -> None:
    beside, other = OTHERWISE[name]
    changes = {"learner": {"critic": "value_head"}} if name == "value_coef" else {}
    before, after = config(beside, **changes), config({**beside, name: other}, **changes)
    assert getattr(before.algorithm, name) != other
    assert but_for_the_method(before) != but_for_the_method(after)
    assert in_words(before)[0] != in_words(after)[0], "the method's own line says what was set otherwise"


@pytest.mark.parametrize("name", Correction.model_fields)
def test_every_setting_of_the_correction_is_in_the_words(name: str) -> None:
    beside, other = OF_CORRECTIONS[name]
    assert in_words(config({}, beside)) != in_words(config({}, {**beside, name: other}))


CHOICES = {
    "baseline": [
        *("leave_one_out", "group_mean", "length_weighted", "batch_mean", "running_mean", "greedy", "optimal_value"),
        *("none", "own:function"),
    ],
    "scale": ["none", "group", "batch", "own:function"],
    "aggregate": ["fixed_length", "token_mean", "sequence_mean", "prompt_mean"],
    "surrogate": ["clip", "weight_cap", "soft_gate", "plain", "own:function"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_words_of_its_own(name: str) -> None:
    said = ["\n".join(but_for_the_method(config({**GROUPED, name: choice}))) for choice in CHOICES[name]]
    assert len({*said}) == len(CHOICES[name])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_in_effect_is_in_no_words(method: str) -> None:
    plain = config({"method": method})
    idle = plain.algorithm.idle()
    for name in idle:
        if name in OTHERWISE and name not in ("reference_every", "kl_in"):
            other = config({"method": method, name: OTHERWISE[name][1]})
            assert in_words(other) == in_words(plain), name
    assert in_words(plain)[0].startswith(f"method: {method} ({METHODS[method].title}")
    assert ", but " not in in_words(plain)[0]


def test_the_words_are_those_of_the_formulas() -> None:
    found = in_words(
        config({"method": "rloo", "clip_ratio_high": 0.28, "dual_clip": 3, "score_clip": 5}, rl={"epochs": 2})
    )
    for line in (
        "reward: reward, clipped to ±5",
        "advantage: reward less KL (k1, 0.05 in the reward) of the whole answer, minus the mean of the prompt's 3 other answers",
        "policy loss: ratio pi / pi_old clipped to 0.8..1.28, at most 3 where the advantage is negative; summed, over answers "
        "times the 128 tokens of the longest",
        "critic: none",
        "correction: none (samples are of the policy that learns); pi_old is as the learner computes it",
        "biases: the bound on the ratio, in steps after an iteration's first",
    ):
        assert line in found, line
    once = "\n".join(in_words(config({"method": "rloo"}, rl={})))
    assert "the ratio is 1, and no bound of it acts" in once
    assert once.endswith("biases: none: this is the policy gradient of what is above")
    assert "forward KL" in "\n".join(in_words(config({"method": "grpo"})))
