"""Who holds reference and teacher: workers, or the learner's ranks."""

from pathlib import Path

import pytest

from rlhf_dist.config import EvaluateConfig, RLConfig, load
from rlhf_dist.errors import ConfigError

RL = "{policy: a, reward: b, prompts: {path: p}}"
EVALUATE = "{policies: {a: b}, prompts: {path: p}}"
TEACHER = "teacher=t + algorithm.method=distill"


def loaded(tmp_path: Path, overrides: str, *, tree: str = RL, kind: type = RLConfig) -> RLConfig:
    (tmp_path / "c.yaml").write_text(tree)
    return load(kind, tmp_path / "c.yaml", [each for each in overrides.split(" + ") if each])


@pytest.mark.parametrize(
    ("overrides", "frozen", "workers"),
    [
        ("", (), {"reward": 1, "reference": 1}),
        ("scoring.reference_on=learner", ("reference",), {"reward": 1}),
        (f"{TEACHER} + scoring.teacher_on=learner", ("teacher",), {"reward": 1, "reference": 1}),
        (
            f"{TEACHER} + scoring={{teacher_on: learner, reference_on: learner}}",
            ("reference", "teacher"),
            {"reward": 1},
        ),
        (
            f"{TEACHER} + scoring={{reference_on: learner, teacher_workers: 3}}",
            ("reference",),
            {"reward": 1, "teacher": 3},
        ),
        ("learner.lora={} + reference=r + scoring.reference_on=learner", ("reference",), {"reward": 1}),
    ],
)
def test_who_is_asked_by_the_learner_has_no_worker(
    overrides: str, frozen: tuple[str, ...], workers: dict[str, int], tmp_path: Path
) -> None:
    found = loaded(tmp_path, overrides)
    assert found.frozen == frozen
    assert found.scoring_workers == workers


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            "scoring={reference_on: learner, reference_workers: 2}",
            "`scoring.reference_workers` .*`scoring.reference_on: workers`",
        ),
        (f"{TEACHER} + scoring={{teacher_on: learner, teacher_workers: 2}}", "`scoring.teacher_on: workers`"),
        ("scoring.teacher_on=learner", "expected it beside `teacher`"),
        ("scoring.frozen_on_host=true", "expected `scoring.reference_on` or `scoring.teacher_on: learner` beside it"),
        (
            "scoring.tensor_parallel=2 + cluster.placement=hybrid",
            "beside cluster.placement hybrid; expected 1, since a model",
        ),
        ("scoring.tensor_parallel=2 + cluster.gpu_share=0.5", "beside cluster.gpu_share 0.5; expected gpu_share 1"),
        (
            "scoring={tensor_parallel: 2, reference_on: learner} + reward=pkg:f + learner.critic=value_head",
            "`scoring.tensor_parallel` .*beside a worker that holds a model",
        ),
        ("learner.lora={} + scoring.reference_on=learner", "the policy with its adapters off needs no other"),
    ],
)
def test_what_nobody_would_read_is_refused(overrides: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, overrides)


def test_an_evaluation_has_no_learner(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`scoring.reference_on` .*nothing is trained"):
        loaded(tmp_path, "scoring.reference_on=learner", tree=EVALUATE, kind=EvaluateConfig)
