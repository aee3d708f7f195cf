"""Adapters in the settings of RL: what they refuse, what they make idle, and who is the reference then."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import EvaluateConfig, Job, RLConfig, SFTConfig, load
from rlhf_dist.errors import ConfigError

TREES = {
    RLConfig: "{policy: a, reward: b, prompts: {path: p}}",
    SFTConfig: "{model: a, data: {path: d}}",
    EvaluateConfig: "{policies: {a: b}, prompts: {path: p}}",
}
REFUSED: list[tuple[type[Job], str, str]] = [
    (RLConfig, "learner.lora={dropout: 0.1}", "learner.lora.dropout is 0.1; expected 0"),
    (
        RLConfig,
        "learner.lora={} + algorithm.reference_every=5",
        "reference_every is 5 beside learner.lora, where the reference is the policy with its adapters off and cannot move",
    ),
    (RLConfig, "learner.lora={} + scoring.reference_workers=2", "no effect here; expected it beside `reference`"),
    (RLConfig, "learner.lora={rnk: 4}", r"unknown key `learner.lora.rnk`; did you mean `learner.lora.rank`"),
    (SFTConfig, "learner.lora.rank=4", "`learner.lora.rank` is 4, which has no effect here; expected `lora`"),
    (EvaluateConfig, "learner.lora.rank=4", "has no effect here; leave it out, since nothing is trained"),
]


def loaded(kind: type[Job], tmp_path: Path, overrides: str) -> Any:
    (tmp_path / "c.yaml").write_text(TREES[kind])
    return load(kind, tmp_path / "c.yaml", [each for each in overrides.split(" + ") if each])


@pytest.mark.parametrize(("kind", "overrides", "told"), REFUSED)
def test_what_adapters_do_not_go_with_is_refused(kind: type[Job], overrides: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded(kind, tmp_path, overrides)


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [
        ("", {"reward": 1, "reference": 1}),
        ("learner.lora={}", {"reward": 1}),
        ("learner.lora={rank: 1} + learner.critic=value_head", {"reward": 1}),
        ("learner.lora={} + reference=r", {"reward": 1, "reference": 1}),
        ("learner.lora={} + reference=r + algorithm.reference_every=5", {"reward": 1, "reference": 1}),
    ],
)
def test_the_policy_is_its_own_reference_where_it_has_adapters_and_none_is_named(
    overrides: str, workers: dict[str, int], tmp_path: Path
) -> None:
    assert loaded(RLConfig, tmp_path, overrides).scoring_workers == workers
