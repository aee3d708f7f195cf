"""Settings of the whole way: fine-tuning, a reward model, PPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_dist.config.rewards import ModelReward, Rewards
from rlhf_dist.config.rl import RLJob
from rlhf_dist.config.sections import Prompts, Section
from rlhf_dist.config.supervised import SFT, RewardModel

OWN_REWARD = "stages/reward/reward_model"
"""How the config calls the reward model that the pipeline trains itself."""


class ModelShape(Section):
    """The small Llama that an embedded task starts from."""

    hidden: int = Field(160, ge=16, multiple_of=8, description="hidden size")
    layers: int = Field(4, ge=1, le=64, description="decoder layers")
    heads: int = Field(5, ge=1, description="attention heads")
    positions: int = Field(256, ge=32, description="longest sequence, in tokens")

    @model_validator(mode="after")
    def _heads_fit_kernels(self) -> ModelShape:
        if self.hidden % (32 * self.heads):
            raise ValueError(
                f"model.hidden {self.hidden} over model.heads {self.heads} is a head of {self.hidden / self.heads:g}; "
                "expected a multiple of 32, which vLLM's CPU attention needs"
            )
        return self


class EmbeddedTask(Section):
    """An embedded task, which brings its own data, tokenizer and gold judge."""

    name: Literal["dialogue", "summarisation", "translation", "style", "classification", "arithmetic"] = Field(
        "dialogue", description="which task"
    )
    prompts: int = Field(4096, ge=64, description="most prompts that PPO trains on")
    demonstrations: int = Field(4096, ge=8, description="demonstrations for SFT")
    comparisons: int = Field(8192, ge=0, description="comparisons for the reward model")
    scores: int = Field(0, ge=0, description="scored answers for the reward model")
    comments: int = Field(0, ge=0, description="commented answers for the reward model")


class PipelineConfig(RLJob):
    """SFT, a reward model and RL; what is not under `sft`, `comment_judge` or `reward_model` is RL's, and shared.

    A reward model is trained where `reward` has it.
    """

    policy: str = Field("", description="model to start from; with `task`: made from nothing")
    reward: Rewards = Field((ModelReward(path=OWN_REWARD),), description="the first model is the pipeline's own")
    prompts: Prompts = Field(Prompts(path=""), description="PPO's prompts; with `task`: the task's")
    task: EmbeddedTask | None = Field(None, description="embedded task; null: your own data")
    model: ModelShape = Field(ModelShape(), description="shape of the model that a task starts from")
    sft: SFT = Field(SFT(), description="fine-tuning")
    comment_judge: SFT = Field(SFT(), description="the small comment judge that a task with comments trains for itself")
    reward_model: RewardModel = Field(RewardModel(), description="the reward model")

    @property
    def trains_reward_model(self) -> bool:
        """Whether any reward is the pipeline's own model."""
        return any(reward.kind == "model" and reward.path == OWN_REWARD for reward in self.reward)

    def idle(self) -> dict[str, str]:
        """And what belongs to a reward model that nobody asks for."""
        instead = f"expected it beside a reward of kind model whose path is {OWN_REWARD}"
        own = {"reward_model": instead, "comment_judge": instead}
        return super().idle() | ({} if self.trains_reward_model else own)

    @model_validator(mode="after")
    def _has_data(self) -> PipelineConfig:
        needed = {
            "policy": self.policy,
            "prompts.path": self.prompts.path,
            "sft.data.path": self.sft.data.path,
            "reward_model.data": self.reward_model.data or not self.trains_reward_model,
        }
        missing = [key for key, value in needed.items() if not value]
        if self.task is None and missing:
            raise ValueError(f"{missing[0]} is empty; expected your own, or an embedded `task`")
        return self
