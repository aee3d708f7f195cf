"""Settings of the rounds of a run: how many, of what size, what ends them, and which of their states stay."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_dist.config.sections import Section


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


class RL(Section):
    """Rounds of rollouts and updates; what an update minimises is `Algorithm`'s."""

    iterations: int = Field(100, ge=1, description="rollout-and-update rounds")
    prompts_per_iteration: int = Field(64, ge=1, description="prompts of one round")
    epochs: int = Field(1, ge=1, le=100, description="passes over each round's samples")
    mini_batches: int = Field(1, ge=1, description="optimiser steps per pass")
    max_policy_kl: float | None = Field(
        None,
        gt=0,
        description="no epoch follows one whose mean KL of the old to the new policy exceeds this, in nats per token",
    )
    ptx_coef: float = Field(
        0.0, ge=0, description="weight of the loss on demonstrations beside RL's: PPO-ptx (arXiv:2203.02155, eq. 2)"
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
