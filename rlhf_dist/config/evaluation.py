"""Settings of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_dist.config.rewards import IMPORT_PATH, Rewards, Safety, check_names
from rlhf_dist.config.sections import Prompts, Rollout, Scoring
from rlhf_dist.config.supervised import Job


class EvaluateConfig(Job):
    """Policies against each other on the same prompts."""

    policies: dict[str, str] = Field(
        min_length=1, description="name to Hugging Face folder; the first is what the others are compared with"
    )
    reference: str | None = Field(None, description="policy to which KL and under which perplexity is; null: the first")
    prompts: Prompts = Field(description="what they answer")
    samples: int = Field(1, ge=1, le=1024, description="answers of each policy to each prompt")
    reward: Rewards = Field((), description="rewards that score the answers, as for PPO; none: no reward")
    safety: Safety = Field(Safety(), description="rules whose broken ones count as unsafe")
    gold_judge: str | None = Field(
        None,
        pattern=IMPORT_PATH,
        description="`package.module:function` of (prompt, answer), a rule that judges answers",
    )
    target: str | None = Field(None, description="column of the prompts' file with what should be answered")
    measures: tuple[Literal["bleu", "chrf", "rouge", "accuracy"], ...] = Field(
        (), description="of the answers against `target`"
    )
    rollout: Rollout = Rollout()
    scoring: Scoring = Scoring()
    run_dir: str = Field("runs/evaluation", description="folder that the evaluation leaves behind")

    @model_validator(mode="after")
    def _targets_are_known(self) -> EvaluateConfig:
        check_names(self.reward)
        if self.measures and self.target is None:
            raise ValueError(
                f"measures is {list(self.measures)}, but target is null; expected the column with the targets"
            )
        return self
