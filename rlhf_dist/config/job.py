"""What every command with a run folder has, and what those share that score answers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from rlhf_dist.config.rewards import IMPORT_PATH, Safety
from rlhf_dist.config.sections import Cluster, Learner, Rollout, Scoring, Section, Telemetry, Timeouts


class Job(Section):
    """What every stage has."""

    folder: ClassVar[str]
    """Name of the run folder below `runs/`, unless `run_dir` says another."""

    run_dir: str = Field(description="folder that the run leaves behind; default: runs/ and the stage's name")
    seed: int = Field(0, ge=0, lt=2**31, description="every random choice derives from it")
    learner: Learner = Learner()
    telemetry: Telemetry = Telemetry()
    timeouts: Timeouts = Timeouts()
    cluster: Cluster = Cluster()
    restarts: int = Field(
        3,
        ge=0,
        description="times that the run is wired again by itself after the loss of a learner rank, the store or a node",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_its_own_folder(cls, tree: Any) -> Any:
        return {"run_dir": f"runs/{cls.folder}", **tree} if isinstance(tree, dict) else tree

    def idle(self) -> dict[str, str]:
        """Keys, each with all below it, that do nothing in this config, and what to do instead; `load` refuses them."""
        return {}


class ScoringJob(Job):
    """A stage whose policies answer prompts, and whose answers are scored."""

    safety: Safety = Field(Safety(), description="rules that no reward outweighs; an answer that breaks one is unsafe")
    reference: str | None = Field(
        None, description="policy to which KL is measured; null: the policy as it starts, of several the first"
    )
    gold_judge: str | None = Field(
        None,
        pattern=IMPORT_PATH,
        description="`package.module:function` as of a reward: a rule that judges answers and never trains",
    )
    rollout: Rollout = Rollout()
    scoring: Scoring = Scoring()
