"""Settings of a PPO run."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlhf_dist.algorithms.bounds import LEAST, MOST
from rlhf_dist.config.job import ScoringJob
from rlhf_dist.config.method import Advantage, Clip, Gae, Surrogate
from rlhf_dist.config.rewards import GOLD, ModelReward, Rewards, check_names
from rlhf_dist.config.sections import Prompts, Section, Weights
from rlhf_dist.config.supervised import Demonstrations


class StopOn(Section):
    """Bands that end a run, or undo what led out of them, when an iteration leaves them."""

    then: Literal["stop", "roll_back"] = Field(
        "stop",
        description="stop: the run ends, and the policy is saved as it then is; roll_back: the learner goes back to where it was "
        "before the update that led there, and on with the next prompts",
    )
    roll_backs: int = Field(
        3, ge=1, description="roll-backs in a row after which a run goes on; it stops with the next"
    )
    ratio_above: float | None = Field(
        None, gt=1, description="largest ratio of a token's probabilities, new policy over old, in an update"
    )
    policy_kl_above: float | None = Field(
        None, gt=0, description="KL of the old to the new policy over an update, nats per token"
    )
    kl_above: float | None = Field(None, gt=0, description="KL to the reference, nats per answer")
    length_below: float | None = Field(None, gt=0, description="mean tokens per answer")
    length_above: float | None = Field(None, gt=0, description="mean tokens per answer")
    gold_drop: float | None = Field(
        None, gt=0, description="the gold score's mean over `patience` iterations falls this far below its best"
    )
    patience: int = Field(5, ge=1, description="iterations over which the gold score is averaged")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that are set."""
        names = ("ratio_above", "policy_kl_above", "kl_above", "length_below", "length_above", "gold_drop")
        return tuple(name for name in names if getattr(self, name) is not None)


class PPO(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as in RLHF (arXiv:1909.08593)."""

    iterations: int = Field(100, ge=1, description="rollout-and-update rounds")
    prompts_per_iteration: int = Field(64, ge=1, description="prompts of one round")
    epochs: int = Field(1, ge=1, le=100, description="passes over each round's samples")
    mini_batches: int = Field(1, ge=1, description="optimiser steps per pass")
    clip_value: float = Field(0.2, gt=0, description="the new value is clipped to the old value ± this")
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL penalty in the reward")
    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL per sample, in nats, that an adaptive coefficient steers to; null: fixed coefficient",
    )
    kl_horizon: int = Field(
        10_000, ge=1, description="samples over which the adaptive coefficient reacts, at least those of an iteration"
    )
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss where the critic is a head")
    whiten_advantages: bool = Field(True, description="zero mean and unit variance over the batch, all ranks together")
    score_clip: float | None = Field(None, gt=0, description="reward scores are clipped to ± this; null: not at all")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken off the score of an answer cut at max_new_tokens")
    max_policy_kl: float | None = Field(
        None,
        gt=0,
        description="no epoch follows one whose mean KL of the old to the new policy exceeds this, in nats per token",
    )
    ptx_coef: float = Field(
        0.0, ge=0, description="weight of the loss on demonstrations beside PPO's: PPO-ptx (arXiv:2203.02155, eq. 2)"
    )
    ptx_batch: int = Field(32, ge=1, description="demonstrations in each optimiser step, where ptx_coef is above 0")
    stop_on: StopOn = StopOn()


class Experience(Section):
    """The experience store."""

    max_staleness: Literal[0] = Field(0, description="weight versions that a sample may lag; 0: strictly on-policy")
    keep: bool = Field(False, description="write every iteration's samples as Arrow files into the run folder")
    capacity_rows: int | None = Field(
        None, ge=1, description="most samples held at once; null: what the schedule needs"
    )


class CheckpointsKept(Section):
    """Which checkpoints stay; older ones are deleted when a newer one is whole."""

    last: int = Field(2, ge=1, description="newest checkpoints that stay with all that --resume needs")
    best: int = Field(
        1, ge=0, description="of older ones, the policies (and critics) that stay: those with the highest `by`"
    )
    by: str = Field(
        "critic/rewards/mean",
        description="metric of the iteration before the checkpoint: critic/rewards/mean (scores less the KL penalty), "
        "critic/score/mean, or reward/NAME/mean of one of the rewards",
    )


class PPOJob(ScoringJob):
    """What a PPO run has, by itself or at the end of a pipeline."""

    folder: ClassVar[str] = "ppo"

    reward: Rewards = Field(
        description="Hugging Face folder or name of the reward model, or a list of rewards that are added up",
    )
    prompts: Prompts = Field(description="prompts")
    critic: str | None = Field(None, description="the critic's start; null: the first reward model with a weight")
    demonstrations: Demonstrations | None = Field(None, description="what PPO-ptx goes on imitating (ppo.ptx_coef)")
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="iterations between checkpoints, from which --resume goes on; 0: only the policy, at the end",
    )
    checkpoints_kept: CheckpointsKept = CheckpointsKept()
    ppo: PPO = PPO()
    advantage: Advantage = Field(Gae(), description="how advantages are estimated: a kind, and its numbers")
    surrogate: Surrogate = Field(Clip(), description="what the policy minimises: a kind, and its numbers")
    experience: Experience = Experience()
    weights: Weights = Weights()

    @property
    def batch_samples(self) -> int:
        """Samples of one iteration."""
        return self.ppo.prompts_per_iteration * self.rollout.samples_per_prompt

    @property
    def ratio_is_one(self) -> bool:
        """Whether the only optimiser step of an iteration sees the very policy that generated the samples."""
        one_step = self.ppo.epochs * self.ppo.mini_batches == 1
        return one_step and self.experience.max_staleness == 0 and self.wire_dtype == self.learner.dtype

    @property
    def max_sequence(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return self.prompts.max_tokens + self.rollout.max_new_tokens

    @property
    def scored_together(self) -> int:
        """Rows that are scored together: about one forward pass, were they half as long as they may be; a quarter at most.

        So scoring begins before the last sample ends, and several workers share it. No number of workers has a part in it.
        """
        return max(1, min(2 * self.scoring.batch_tokens // self.max_sequence, -(-self.batch_samples // 4)))

    @property
    def wire_dtype(self) -> str:
        """Torch's name of the dtype in which weights travel."""
        if self.weights.wire_dtype == "auto":
            return self.learner.dtype
        return self.weights.wire_dtype

    @property
    def probe_tolerance(self) -> float:
        """Largest mean difference between the engine's and the learner's probe log-probs, in nats."""
        return self.weights.probe_tolerance or (1e-3 if self.wire_dtype == "float32" else 0.1)

    def idle(self) -> dict[str, str]:
        """What another setting would have to be there for."""
        critic, ppo = self.learner.critic, self.ppo
        head = "expected `learner.policy`, by which a head is trained too"
        none = "leave it out, since there is no critic"
        one_step = ppo.epochs * ppo.mini_batches == 1
        several = (
            "expected it beside `ppo.epochs` or `ppo.mini_batches` above 1: the policy of an only step is the old one"
        )
        idle = {
            "learner.value": (critic != "model", head if critic == "value_head" else none),
            "ppo.value_coef": (critic != "value_head", "expected it beside learner.critic value_head alone"),
            "ppo.clip_value": (critic == "none", none),
            "ppo.max_policy_kl": (ppo.epochs == 1, "expected it beside `ppo.epochs` above 1, which it ends"),
            "ppo.kl_horizon": (ppo.kl_target is None, "expected it beside `ppo.kl_target`"),
            "ppo.ptx_batch": (ppo.ptx_coef == 0, "expected it beside `ppo.ptx_coef` above 0"),
            "demonstrations": (ppo.ptx_coef == 0, "expected it beside `ppo.ptx_coef` above 0"),
            "checkpoints_kept": (self.checkpoint_every == 0, "expected it beside `checkpoint_every`"),
            "checkpoints_kept.by": (
                self.checkpoints_kept.best == 0,
                "expected it beside `checkpoints_kept.best` above 0",
            ),
            "ppo.stop_on.patience": (ppo.stop_on.gold_drop is None, "expected it beside `ppo.stop_on.gold_drop`"),
            "ppo.stop_on.ratio_above": (one_step, several),
            "ppo.stop_on.policy_kl_above": (one_step, several),
            "ppo.stop_on.then": (not ppo.stop_on.bands, "expected it beside a band, e.g. `ppo.stop_on.kl_above`"),
            "ppo.stop_on.roll_backs": (ppo.stop_on.then == "stop", "expected it beside `ppo.stop_on.then: roll_back`"),
        }
        return {key: instead for key, (is_idle, instead) in idle.items() if is_idle}

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        if self.rollout.truncated:
            raise ValueError(
                f"rollout.top_p is {self.rollout.top_p:g} and rollout.top_k {self.rollout.top_k}; expected 1 and 0, since PPO's "
                "ratio and KL are of the whole distribution, from which truncated samples are not drawn"
            )
        if self.ppo.prompts_per_iteration < self.ppo.mini_batches:
            raise ValueError(
                f"ppo.mini_batches is {self.ppo.mini_batches}, more than the {self.ppo.prompts_per_iteration} prompts "
                "of ppo.prompts_per_iteration; expected at most one mini-batch per prompt"
            )
        if self.ppo.prompts_per_iteration < self.learner.ranks * self.ppo.mini_batches:
            raise ValueError(
                f"a batch has {self.ppo.prompts_per_iteration} prompts for learner.ranks {self.learner.ranks} x "
                f"ppo.mini_batches {self.ppo.mini_batches}; expected at least one prompt per rank and mini-batch, since the "
                "samples of a prompt stay on one rank"
            )
        if self.learner.micro_batch_tokens < self.max_sequence:
            raise ValueError(
                f"learner.micro_batch_tokens is {self.learner.micro_batch_tokens}; expected at least prompts.max_tokens "
                f"+ rollout.max_new_tokens = {self.max_sequence}, so that the longest sample fits"
            )
        capacity = self.experience.capacity_rows
        needed = (self.experience.max_staleness + 1) * self.batch_samples
        if capacity is not None and capacity < needed:
            raise ValueError(
                f"experience.capacity_rows is {capacity}; expected at least (max_staleness + 1) x batch = {needed}, "
                "else no batch ever completes"
            )
        return self

    @model_validator(mode="after")
    def _coefficient_can_adapt(self) -> Self:
        if self.ppo.kl_target is None:
            return self
        if not LEAST <= self.ppo.kl_coef <= MOST:
            raise ValueError(
                f"ppo.kl_coef is {self.ppo.kl_coef:g} beside ppo.kl_target {self.ppo.kl_target:g}; expected {LEAST:g} to "
                f"{MOST:g}, between which the adaptive coefficient stays"
            )
        if self.ppo.kl_horizon < self.batch_samples:
            raise ValueError(
                f"ppo.kl_horizon is {self.ppo.kl_horizon}; expected at least the {self.batch_samples} samples of an iteration, "
                "after each of which the coefficient moves once"
            )
        return self

    @model_validator(mode="after")
    def _critic_is_what_the_estimator_needs(self) -> Self:
        critic, estimator = self.learner.critic, self.advantage
        if critic != "model" and self.critic is not None:
            raise ValueError(f"critic names a model but learner.critic is {critic}; expected one of the two")
        if estimator.needs_values and critic == "none":
            raise ValueError(f"advantage.kind {estimator.kind} needs values; learner.critic is none, expected a critic")
        if not estimator.needs_values and critic != "none":
            raise ValueError(
                f"advantage.kind {estimator.kind} needs no critic; learner.critic is {critic}, expected none"
            )
        if self.rollout.samples_per_prompt < estimator.fewest_samples:
            raise ValueError(
                f"advantage.kind {estimator.kind} compares the samples of a prompt; rollout.samples_per_prompt is "
                f"{self.rollout.samples_per_prompt}, expected at least {estimator.fewest_samples}"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        rewards = [reward.name for reward in self.reward] + ([GOLD] if self.watches_gold else [])
        known = [
            "critic/rewards/mean",
            "critic/score/mean",
            *(f"reward/{name}/mean" for name in dict.fromkeys(rewards)),
        ]
        if self.checkpoints_kept.by not in known:
            raise ValueError(
                f"checkpoints_kept.by is {self.checkpoints_kept.by!r}, which this run does not measure; expected one of "
                f"{', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_enough(self) -> Self:
        check_names(self.reward, self.gold_judge)
        if not any(reward.weight for reward in self.reward):
            raise ValueError("reward has no component with a weight; expected at least one that is not 0")
        if self.ppo.stop_on.gold_drop is not None and not self.watches_gold:
            raise ValueError(f"ppo.stop_on.gold_drop needs a gold_judge, or a reward of weight 0 named {GOLD!r}")
        if self.critic is None and self.learner.critic == "model" and self.critic_reward is None:
            raise ValueError(
                "critic is null and reward has no model that it could start from; expected a critic, or learner.critic "
                "value_head"
            )
        return self

    @property
    def reward_models(self) -> tuple[str, ...]:
        """Folders of the reward models."""
        return tuple(reward.path for reward in self.reward if reward.kind == "model")

    @property
    def critic_reward(self) -> ModelReward | None:
        """The model that a critic starts as, unless `critic` names another: one of weight 0 says nothing of the returns."""
        return next((reward for reward in self.reward if reward.kind == "model" and reward.weight), None)

    @property
    def watches_gold(self) -> bool:
        """Whether every sample gets a gold score, of a judge or of a reward of weight 0 under that name."""
        return self.gold_judge is not None or any(reward.name == GOLD for reward in self.reward)

    @model_validator(mode="after")
    def _engines_can_share(self) -> Self:
        if self.cluster.placement != "colocated":
            return self
        workers = self.rollout.workers
        if workers.min != workers.max or workers.max > self.learner.ranks:
            raise ValueError(
                f"cluster.placement colocated puts one engine beside one learner rank; rollout.workers is {workers.min} to "
                f"{workers.max}, expected a number of at most learner.ranks = {self.learner.ranks}"
            )
        if self.rollout.tensor_parallel > 1:
            raise ValueError(
                f"cluster.placement colocated with rollout.tensor_parallel {self.rollout.tensor_parallel}; expected 1, since "
                "an engine over several GPUs cannot share them with a rank on each. Take disaggregated or hybrid"
            )
        return self


class PPOConfig(PPOJob):
    """One PPO run."""

    policy: str = Field(description="Hugging Face folder or name of the policy to train")

    @model_validator(mode="after")
    def _has_what_it_imitates(self) -> Self:
        if self.ppo.ptx_coef and self.demonstrations is None:
            raise ValueError(
                f"ppo.ptx_coef is {self.ppo.ptx_coef:g}, but demonstrations is null; expected some to go on imitating"
            )
        return self
