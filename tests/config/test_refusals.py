"""What a method does not read is refused where somebody writes it, and what contradicts is refused wherever it comes from."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_dist.config import METHODS, Algorithm, Correction, RLConfig, dump, load, override
from rlhf_dist.errors import ConfigError

ALWAYS = frozenset(
    {
        *("method", "baseline", "whiten_advantages", "surrogate", "aggregate", "kl_coef", "kl_target", "entropy_coef"),
        *("entropy_target", "score_clip", "missing_eos_penalty", "truncated", "overlong_share", "filter_groups"),
        *("positive_nll_coef", "scale", "credit", "select"),
    }
)
"""What an update reads whatever the others are; the last three may be written beside a critic, too, which fixes them."""
BY = {
    "critic": {*("gae_lambda", "gae_lambda_policy", "gae_length_alpha", "clip_value", "critic_warmup", "gamma")},
    "to_go": {"gamma"},
    "running": {"running_decay"},
    "optimal": {"reference_samples", "tau"},
    "clip": {"clip_ratio", "clip_ratio_high", "dual_clip"},
    "sequence": {"clip_ratio", "clip_ratio_high"},
    "cap": {"weight_cap"},
    "gate": {"gate_temperature", "gate_temperature_negative"},
    "squared": {"tau", "anchor"},
    "kl in reward": {"kl_in", "reference_every"},
    "kl in loss": {"kl_in", "kl_estimator", "kl_gradient", "reference_every"},
    "dual entropy": {"entropy_in", "entropy_lr"},
    "overlong": {"overlong_penalty"},
    "filter": {"filter_rounds"},
    "teacher": {"teacher_coef"},
}
"""What the learner reads for each part of a method, as its code has it (`learner/estimation.py`, `policy_update.py`)."""
PARTS = {
    "ppo": ("critic", "clip", "kl in reward"),
    "reinforce": ("running", "kl in reward"),
    "max_entropy": ("clip", "dual entropy"),
    "rloo": ("clip", "kl in reward"),
    "reinforce_pp": ("to_go", "clip", "kl in reward"),
    "reinforce_pp_baseline": ("clip", "kl in loss"),
    "grpo": ("clip", "kl in loss"),
    "dr_grpo": ("clip",),
    "dapo": ("clip", "filter", "overlong"),
    "gspo": ("sequence",),
    "cispo": ("cap",),
    "sapo": ("gate",),
    "remax": ("kl in reward",),
    "opo": (),
    "kimi": ("squared",),
    "a_star": ("squared", "optimal"),
    "raft": (),
    "distill": ("to_go", "clip", "teacher"),
}
V_STAR = "algorithm.baseline optimal_value is of the reference at the start; expected no reference_every"
SOME = {
    "gae_lambda_policy": 0.9,
    "gae_length_alpha": 0.1,
    "clip_ratio_high": 0.3,
    "dual_clip": 3.0,
    "reference_every": 5,
}
"""Of settings that are null unless somebody says them."""


def tree(method: str, algorithm: dict[str, Any] | None = None) -> dict[str, Any]:
    own = {"method": method, **(algorithm or {})}
    found = {"policy": "p", "reward": "r", "prompts": {"path": "x"}, "algorithm": own}
    return {**found, "rl": {"epochs": 2}, **({"teacher": "t"} if method == "distill" else {})}


def read_by(method: str) -> set[str]:
    return set(ALWAYS).union(*(BY[part] for part in PARTS[method]))


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_is_refused_exactly_where_its_method_does_not_read_it(method: str, tmp_path: Path) -> None:
    resolved, path = Algorithm.model_validate({"method": method}), tmp_path / "c.yaml"
    plain = RLConfig.model_validate(tree(method))
    for name in Algorithm.model_fields:
        value = SOME.get(name) if getattr(resolved, name) is None else getattr(resolved, name)
        if value is None:
            continue  # null: refused nowhere, and read as what it is
        path.write_text(yaml.safe_dump(tree(method, {name: value})))
        if name in read_by(method):
            load(RLConfig, path)
            continue
        key = f"algorithm.{name}"
        with pytest.raises(ConfigError, match=rf"c.yaml: (`{key}` is .*, which has no effect here; |{V_STAR})"):
            load(RLConfig, path)
        with pytest.raises(ConfigError, match=rf"--set: (`{key}` is .*, which has no effect here; |{V_STAR})"):
            override(plain, [f"{key}={value}"])
    path.write_text(dump(plain))
    assert load(RLConfig, path) == plain, "what a run wrote has everything, and is read again"


def test_the_table_is_of_all_methods_and_settings() -> None:
    assert PARTS.keys() == METHODS.keys()
    others = {"kl_target_per", "kl_horizon", "reference_mix", "value_coef"}
    """Beside kl_target, reference_every and a value head alone, which no method has."""
    assert ALWAYS.union(*BY.values()) | others == Algorithm.model_fields.keys()


@pytest.mark.parametrize(
    ("beside", "read"),
    [
        ({"kl_target": 5.0}, {"kl_target_per": "token", "kl_horizon": 9_000}),
        ({"reference_every": 5}, {"reference_mix": 0.5}),
        ({"baseline": "own:f", "whiten_advantages": False}, {"running_decay": 0.9}),
        ({"baseline": "group_mean", "scale": "own:f"}, {"running_decay": 0.9}),
        ({"baseline": "optimal_value"}, {"tau": 0.2, "reference_samples": 4}),
        ({"baseline": "none", "credit": "to_go"}, {"gamma": 0.9}),
        ({"entropy_coef": 0.1}, {"entropy_in": "reward"}),
    ],
)
def test_what_another_setting_makes_effective_is_read(
    beside: dict[str, Any], read: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    for name, value in read.items():
        for settings, fine in (({**beside, name: value}, True), ({name: value}, False)):
            path.write_text(yaml.safe_dump({**tree("ppo", settings), "rollout": {"samples_per_prompt": 2}}))
            if fine:
                load(RLConfig, path)
            elif name != "gamma":  # PPO reads it
                with pytest.raises(ConfigError, match="has no effect here"):
                    load(RLConfig, path)


GROUPED = "algorithm.baseline=group_mean + rollout.samples_per_prompt=4"
SQUARED = (
    f"algorithm.surrogate=squared + algorithm.aggregate=sequence_mean + {GROUPED} + algorithm.whiten_advantages=false"
)
CONTRADICTIONS = {
    "algorithm.scale=group": "algorithm.scale is group beside baseline critic; expected none",
    "algorithm.credit=to_go": "algorithm.credit is to_go beside baseline critic; expected answer",
    "algorithm.select=best": "algorithm.select is best beside baseline critic; expected all",
    f"{GROUPED} + algorithm.credit=to_go + algorithm.scale=group": "scale is group beside credit to_go, .*; expected none",
    f"{GROUPED} + algorithm.select=best": "select best makes advantages of 0 and 1; baseline is group_mean",
    "algorithm.method=raft + algorithm.whiten_advantages=true": "whiten_advantages would push .*; expected false",
    "algorithm.method=raft + algorithm.credit=to_go": "credit is to_go beside select best, .*; expected answer",
    "algorithm.method=remax + algorithm.filter_groups=true + rollout.samples_per_prompt=2": "not made for baseline greedy",
    "algorithm.method=a_star + algorithm.filter_groups=true + rollout.samples_per_prompt=2": "not made for baseline optimal",
    "algorithm.gae_length_alpha=1 + algorithm.gae_lambda_policy=1": "both say the policy's lambda; expected one",
    "algorithm.method=a_star + algorithm.reference_every=2": "of the reference at the start; expected no reference_every",
    "algorithm.method=a_star + algorithm.kl_coef=0.1": "kl_coef is 0.1 beside a squared loss anchored at the reference",
    "algorithm.surrogate=sequence_clip": "algorithm.aggregate is token_mean, expected sequence_mean",
    "algorithm.surrogate=squared + algorithm.aggregate=sequence_mean": "expected a baseline other than critic",
    f"{SQUARED} + algorithm.credit=to_go": "credit answer and whiten_advantages false",
    "algorithm.kl_in=loss + algorithm.kl_gradient=estimator": "k1 pulls nowhere: .*; expected kl_gradient exact, or k2 or k3",
    "algorithm.entropy_target=1": "entropy_coef is 0 beside entropy_target, .*; expected a start above 0",
    "algorithm.kl_target=1 + algorithm.kl_coef=0": "kl_coef is 0 beside algorithm.kl_target 1; expected 1e-06 to 1000",
    "algorithm.kl_target=1 + algorithm.kl_horizon=9": "kl_horizon is 9; expected at least the 64 samples",
    "algorithm.weight_cap=0.5": "`algorithm.weight_cap` is 0.5; expected: .*greater than or equal to 1",
    "algorithm.critic_warmup=100": "critic_warmup is 100 of rl.iterations 100; expected fewer",
    "algorithm.critic_warmup=1 + learner.critic=value_head": "a value head is part of it; expected 0",
    "learner.critic=none": "algorithm.baseline critic needs values; learner.critic is none, expected a critic",
    f"{GROUPED} + learner.critic=model": "baseline group_mean needs no critic; learner.critic is model, expected none",
    "algorithm.method=grpo + rollout.samples_per_prompt=1": "compares the answers to a prompt; .* is 1, expected at least 2",
    "algorithm.filter_groups=true": "compares the answers to a prompt; .* is 1, expected at least 2",
    "algorithm.teacher_coef=1": "teacher is None beside algorithm.teacher_coef 1; expected a folder and a weight above 0",
    "teacher=t": "teacher is 't' beside algorithm.teacher_coef 0; expected a folder and a weight above 0",
    "algorithm.method=distill": "teacher is None beside algorithm.teacher_coef 1",
    "algorithm.method=distill + teacher=t + reward=[] + algorithm.filter_groups=true + rollout.samples_per_prompt=2": (
        "filter_groups leaves out prompts whose answers score the same, as all do without a reward; expected false"
    ),
    "algorithm.method=distill + teacher=t + reward=[] + algorithm.positive_nll_coef=1": "expected it beside a `reward`",
    "reward=[]": "reward has no component with a weight; expected at least one",
    "algorithm.method=a_star + reference=x": "samples from the reference with the run's own engines; .* expected null",
    "algorithm.method=gpro": "`algorithm.method` is 'gpro'; expected: .*'grpo'",
    "algorithm.method=[a]": r"`algorithm.method` is \['a'\]; expected: ",
    "algorithm.baseline=nowhere": "`algorithm.baseline.*` is 'nowhere'; expected: ",
    "correction.cap=3": "`correction.cap` is 3, .*; expected `correction.weight: token` or `sequence` beside it",
    "correction.outside=zero": "`correction.outside` is 'zero', .*; expected `correction.weight",
    "correction.floor=0.5 + correction.weight=token": "`correction.floor` is 0.5, .*; expected `correction.outside: zero`",
    "correction.proximal=rollout": "an only step sees the policy that sampled",
    "correction.proximal=rollout + correction.weight=token": "would count the same twice",
    "correction.proximal=rollout + correction.veto=0.1 + rl.epochs=2": "would count the same twice",
    "correction.reject=[0.5, 0.9]": r"correction.reject is \[0.5, 0.9\]; expected bounds around 1",
}


@pytest.mark.parametrize("changes", CONTRADICTIONS)
def test_what_contradicts_is_one_sentence(changes: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("policy: p\nreward: r\nprompts: {path: x}\n")
    with pytest.raises(ConfigError, match=CONTRADICTIONS[changes]):
        load(RLConfig, path, changes.split(" + "))


def test_what_a_choice_fixes_may_be_written_with_that_value(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("policy: p\nreward: r\nprompts: {path: x}\nalgorithm: {method: grpo, credit: to_go, scale: none}\n")
    assert load(RLConfig, path).algorithm.scale == "none"
    path.write_text(
        "policy: p\nreward: r\nprompts: {path: x}\nalgorithm: {method: grpo, baseline: critic, scale: none}\n"
    )
    assert load(RLConfig, path).algorithm.kl_estimator == "k3"


@pytest.mark.parametrize("name", Correction.model_fields)
def test_every_correction_is_read_or_refused(name: str, tmp_path: Path) -> None:
    value = {"proximal": "recompute", "weight": "token", "cap": 3.0, "floor": 0.5, "outside": "zero"}.get(name)
    value = {"reject": [0.9, 1.1], "veto": 1e-4}.get(name, value)
    path = tmp_path / "c.yaml"
    beside = {
        "cap": {"weight": "token"},
        "outside": {"weight": "token"},
        "floor": {"weight": "token", "outside": "zero"},
    }
    path.write_text(yaml.safe_dump({**tree("rloo"), "correction": {**beside.get(name, {}), name: value}}))
    assert load(RLConfig, path).correction.model_dump(mode="json")[name] == value
    if name in beside:
        path.write_text(yaml.safe_dump({**tree("rloo"), "correction": {name: value}}))
        with pytest.raises(ConfigError, match=f"`correction.{name}` is .*, which has no effect here"):
            load(RLConfig, path)


def test_a_method_is_named_where_its_settings_are_not_written_yet(tmp_path: Path) -> None:
    plain, path = RLConfig.model_validate(tree("ppo")), tmp_path / "config.yaml"
    path.write_text(dump(plain))
    for attempt in (
        lambda: load(RLConfig, path, ["algorithm.method=grpo"]),
        lambda: override(plain, ["algorithm.method=grpo"]),
    ):
        with pytest.raises(ConfigError, match="has every setting of ppo, of which a method's name would change none"):
            attempt()
    assert load(RLConfig, path, ["algorithm.method=ppo"]) == plain
    path.write_text(yaml.safe_dump(tree("ppo")))
    changed = load(RLConfig, path, ["algorithm.method=grpo"])
    assert (changed.algorithm.scale, changed.learner.critic, changed.rollout.samples_per_prompt) == (
        "group",
        "none",
        64,
    )
