"""Settings of an evaluation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlhf_dist.config.job import ScoringJob
from rlhf_dist.config.rewards import Rewards, check_names
from rlhf_dist.config.sections import Prompts


class EvaluateConfig(ScoringJob):
    """Policies against each other on the same prompts."""

    folder: ClassVar[str] = "evaluation"

    policies: dict[str, str] = Field(
        min_length=1, description="name to Hugging Face folder; the first is what the others are compared with"
    )
    prompts: Prompts = Field(description="what they answer")
    samples: int = Field(1, ge=1, le=1024, description="answers of each policy to each prompt")
    reward: Rewards = Field((), description="rewards that score the answers, as for PPO; none: no reward")
    target: str | None = Field(None, description="column of the prompts' file with what should be answered")
    measures: tuple[Literal["bleu", "chrf", "rouge", "accuracy"], ...] = Field(
        (), description="of the answers against `target`"
    )

    @model_validator(mode="after")
    def _targets_are_known(self) -> EvaluateConfig:
        check_names(self.reward, self.gold_judge)
        if self.measures and self.target is None:
            raise ValueError(
                f"measures is {list(self.measures)}, but target is null; expected the column with the targets"
            )
        return self

    def idle(self) -> dict[str, str]:
        """Of the sections that are PPO's too."""
        untrained = "leave it out, since nothing is trained"
        return {
            "learner.policy": untrained,
            "learner.value": untrained,
            "learner.critic": untrained,
            "learner.lora": untrained,
            "learner.on_bad_numbers": untrained,
            "telemetry.trace_iterations": "leave it out, since only PPO is traced",
            "restarts": "expected `rollout.max_restarts`, since there is nothing to wire again",
            "rollout.samples_per_prompt": "expected `samples`",
            "prompts.held_out": "expected `prompts.path`, the prompts that are answered",
            "scoring.reward_workers": "leave it out, since one worker scores",
            "scoring.reference_workers": "leave it out, since one worker scores",
            "scoring.reference_on": untrained,
            "scoring.teacher_on": untrained,
            "scoring.frozen_on_host": untrained,
            "scoring.quarantine": "leave it out, since every answer of an evaluation needs its score",
        }
