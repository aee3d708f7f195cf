"""Settings of a run of reinforcement learning."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from rlhf_dist.config.algorithm import Algorithm, Correction
from rlhf_dist.config.effects import idle_of_run
from rlhf_dist.config.job import ScoringJob
from rlhf_dist.config.methods import method_named
from rlhf_dist.config.rewards import GOLD, ModelReward, Rewards, Safety, check_names, devices_of_scorer
from rlhf_dist.config.rounds import RL, CheckpointsKept, Experience
from rlhf_dist.config.sections import Prompts, Weights
from rlhf_dist.config.supervised import Demonstrations


class RLJob(ScoringJob):
    """What an RL run has, by itself or at the end of a pipeline."""

    folder: ClassVar[str] = "rl"

    reward: Rewards = Field(
        (),
        description="Hugging Face folder or name of the reward model, `package.module:function`, or a list of rewards that are "
        "added up; none only beside a teacher",
    )
    prompts: Prompts = Field(description="prompts")
    critic: str | None = Field(None, description="the critic's start; null: the first reward model with a weight")
    teacher: str | None = Field(None, description="policy whose log-probs algorithm.teacher_coef adds to the reward")
    demonstrations: Demonstrations | None = Field(None, description="what PPO-ptx goes on imitating (rl.ptx_coef)")
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="iterations between checkpoints, from which --resume goes on; 0: only the policy, at the end",
    )
    checkpoints_kept: CheckpointsKept = CheckpointsKept()
    rl: RL = RL()
    algorithm: Algorithm = Field(Algorithm(), description="what is estimated and minimised: a method, and its settings")
    correction: Correction = Field(Correction(), description="what makes up for samples of another policy")
    experience: Experience = Experience()
    weights: Weights = Weights()

    @model_validator(mode="before")
    @classmethod
    def _filled_by_the_method(cls, tree: Any) -> Any:
        """What a method says of other sections than its own, where these say nothing."""
        said = tree.get("algorithm", {}) if isinstance(tree, dict) else None
        if not isinstance(said, dict) or (method := method_named(said.get("method", "ppo"))) is None:
            return tree
        filled = dict(tree)
        baseline = said.get("baseline", method.algorithm.get("baseline", "critic"))
        learner = {} if baseline == "critic" else {"critic": "none"}
        for name, settings in (("rl", method.rl), ("rollout", method.rollout), ("learner", learner)):
            if settings and isinstance(section := tree.get(name, {}), dict):
                filled[name] = {**settings, **section}
        return filled

    @property
    def batch_samples(self) -> int:
        """Samples that one iteration learns from."""
        return self.rl.prompts_per_iteration * self.rollout.samples_per_prompt

    @property
    def batch_rows(self) -> int:
        """Rows of one iteration's prompts: the samples, and greedy answers where these are the baseline."""
        return self.batch_samples + self.rl.prompts_per_iteration * (self.algorithm.baseline == "greedy")

    @property
    def most_rows(self) -> int:
        """Rows of one iteration, with those that are sampled for prompts that were left out."""
        return self.batch_rows * (self.algorithm.filter_rounds if self.algorithm.filter_groups else 1)

    @property
    def ratio_is_one(self) -> bool:
        """Whether the only optimiser step of an iteration sees the very policy that generated the samples."""
        one_step = self.rl.epochs * self.rl.mini_batches == 1
        fresh = self.experience.max_staleness == 0 and self.wire_dtype == self.learner.dtype
        return one_step and fresh and not self.correction.acts

    @property
    def is_own_reference(self) -> bool:
        """Whether the reference is the policy itself with its adapters off, which needs no worker."""
        return self.learner.lora is not None and self.reference is None

    @property
    def frozen(self) -> tuple[str, ...]:
        """Models that the learner's ranks hold beside those that they train: of `reference` and `teacher`."""
        asked = {
            "reference": self.scoring.reference_on == "learner" and not self.is_own_reference,
            "teacher": self.scoring.teacher_on == "learner" and self.teacher is not None,
        }
        return tuple(role for role, is_asked in asked.items() if is_asked)

    @property
    def scoring_workers(self) -> dict[str, int]:
        """Processes of each kind that scores."""
        scoring = self.scoring
        found = {"reward": scoring.reward_workers}
        found |= {} if self.is_own_reference else {"reference": scoring.reference_workers}
        found |= {"teacher": scoring.teacher_workers} if self.teacher is not None else {}
        return {role: number for role, number in found.items() if role not in self.frozen}

    def devices_of_scorer(self, role: str) -> int:
        """GPUs, or CPU processes, of a scoring worker."""
        return devices_of_scorer(role, self.reward, self.scoring.tensor_parallel)

    @property
    def max_sequence(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return self.prompts.max_tokens + self.rollout.max_new_tokens

    @property
    def scored_together(self) -> int:
        """Rows that are scored together: about one forward pass, were they half as long as they may be; a quarter at most.

        So scoring begins before the last sample ends, and several workers share it. No number of workers has a part in it.
        """
        return max(1, min(2 * self.scoring.batch_tokens // self.max_sequence, -(-self.batch_rows // 4)))

    @property
    def wire_dtype(self) -> str:
        """Torch's name of the dtype in which weights travel."""
        if self.weights.wire_dtype == "auto":
            return self.learner.dtype
        return self.weights.wire_dtype

    def idle(self) -> dict[str, str]:
        """What another setting would have to be there for."""
        return idle_of_run(self)

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        if self.rollout.truncated:
            raise ValueError(
                f"rollout.top_p is {self.rollout.top_p:g} and rollout.top_k {self.rollout.top_k}; expected 1 and 0, since PPO's "
                "ratio and KL are of the whole distribution, from which truncated samples are not drawn"
            )
        if self.rl.prompts_per_iteration < self.rl.mini_batches:
            raise ValueError(
                f"rl.mini_batches is {self.rl.mini_batches}, more than the {self.rl.prompts_per_iteration} prompts "
                "of rl.prompts_per_iteration; expected at most one mini-batch per prompt"
            )
        if self.rl.prompts_per_iteration < self.learner.ranks * self.rl.mini_batches:
            raise ValueError(
                f"a batch has {self.rl.prompts_per_iteration} prompts for learner.ranks {self.learner.ranks} x "
                f"rl.mini_batches {self.rl.mini_batches}; expected at least one prompt per rank and mini-batch, since the "
                "samples of a prompt stay on one rank"
            )
        if self.learner.micro_batch_tokens < self.max_sequence:
            raise ValueError(
                f"learner.micro_batch_tokens is {self.learner.micro_batch_tokens}; expected at least prompts.max_tokens "
                f"+ rollout.max_new_tokens = {self.max_sequence}, so that the longest sample fits"
            )
        capacity = self.experience.capacity_rows
        needed = self.experience.max_staleness * self.batch_rows + self.most_rows
        if capacity is not None and capacity < needed:
            raise ValueError(
                f"experience.capacity_rows is {capacity}; expected at least {needed}, the rows of max_staleness + 1 iterations, "
                "else no batch ever completes"
            )
        return self

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> Self:
        critic, algorithm, answers = self.learner.critic, self.algorithm, self.rollout.samples_per_prompt
        if critic != "model" and self.critic is not None:
            raise ValueError(f"critic names a model but learner.critic is {critic}; expected one of the two")
        if algorithm.has_critic and critic == "none":
            raise ValueError("algorithm.baseline critic needs values; learner.critic is none, expected a critic")
        if not algorithm.has_critic and critic != "none":
            raise ValueError(
                f"algorithm.baseline {algorithm.baseline} needs no critic; learner.critic is {critic}, expected none"
            )
        if answers < algorithm.fewest_answers:
            raise ValueError(
                f"algorithm.method {algorithm.method} (baseline {algorithm.baseline}, scale {algorithm.scale}) compares the "
                f"answers to a prompt; rollout.samples_per_prompt is {answers}, expected at least 2"
            )
        if self.batch_samples < 2 and (algorithm.baseline == "batch_mean" or algorithm.scale == "batch"):
            raise ValueError(
                "algorithm.baseline batch_mean and scale batch compare an iteration's answers; it has only one"
            )
        if algorithm.critic_warmup and critic == "value_head":
            raise ValueError(
                "algorithm.critic_warmup keeps the policy as it is, and a value head is part of it; expected 0"
            )
        if algorithm.kl_target is not None and algorithm.kl_horizon < self.batch_samples:
            raise ValueError(
                f"algorithm.kl_horizon is {algorithm.kl_horizon}; expected at least the {self.batch_samples} samples of an "
                "iteration, after each of which the coefficient moves once"
            )
        if algorithm.baseline == "optimal_value" and self.reference is not None:
            raise ValueError(
                "algorithm.baseline optimal_value samples from the reference with the run's own engines; reference names "
                "another model, expected null: the policy as it starts"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.algorithm.critic_warmup >= self.rl.iterations:
            raise ValueError(
                f"algorithm.critic_warmup is {self.algorithm.critic_warmup} of rl.iterations {self.rl.iterations}; expected "
                "fewer, else the policy never learns"
            )
        if self.algorithm.filter_groups and not self.has_reward and self.safety == Safety():
            raise ValueError(
                "algorithm.filter_groups leaves out prompts whose answers score the same, as all do without a reward; expected "
                "false"
            )
        return self

    @model_validator(mode="after")
    def _adapters_can_be_switched_off(self) -> Self:
        if self.learner.lora is None:
            return self
        if self.learner.lora.dropout:
            raise ValueError(
                f"learner.lora.dropout is {self.learner.lora.dropout:g}; expected 0, since ratios compare a policy with what it "
                "was before the update, and dropout alone would move them"
            )
        if self.is_own_reference and self.algorithm.reference_every is not None:
            raise ValueError(
                f"algorithm.reference_every is {self.algorithm.reference_every} beside learner.lora, where the reference is the "
                "policy with its adapters off and cannot move; expected a `reference`, or no reference_every"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_asked(self) -> Self:
        if (self.teacher is None) != (self.algorithm.teacher_coef == 0):
            raise ValueError(
                f"teacher is {self.teacher!r} beside algorithm.teacher_coef {self.algorithm.teacher_coef:g}; expected a folder "
                "and a weight above 0 (algorithm.method distill), or neither"
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
        if not self.has_reward and self.teacher is None:
            raise ValueError("reward has no component with a weight; expected at least one that is not 0")
        if self.rl.stop_on.gold_drop is not None and not self.watches_gold:
            raise ValueError(f"rl.stop_on.gold_drop needs a gold_judge, or a reward of weight 0 named {GOLD!r}")
        if self.critic is None and self.learner.critic == "model" and self.critic_reward is None:
            raise ValueError(
                "critic is null and reward has no model that it could start from; expected a critic, learner.critic "
                "value_head, or a method without a critic"
            )
        return self

    @property
    def has_reward(self) -> bool:
        """Whether any reward counts; else a teacher alone says what is better."""
        return any(reward.weight for reward in self.reward)

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
    def _scorers_have_whole_gpus(self) -> Self:
        wide = {role for role in self.scoring_workers if self.devices_of_scorer(role) > 1}
        cluster, found = self.cluster, f"scoring.tensor_parallel is {self.scoring.tensor_parallel}"
        if wide and cluster.placement != "disaggregated":
            raise ValueError(
                f"{found} beside cluster.placement {cluster.placement}; expected 1, since a model that is cut over several GPUs "
                "cannot share them with ranks. Take disaggregated, or let the learner's ranks hold reference and teacher "
                "(scoring.reference_on, scoring.teacher_on)"
            )
        if wide and cluster.gpu_share < 1:
            raise ValueError(
                f"{found} beside cluster.gpu_share {cluster.gpu_share:g}; expected gpu_share 1, since parts of a model that "
                "shared a GPU would save nothing"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_stay_on_their_cards(self) -> Self:
        if self.weights.transport == "store":
            return self
        if self.weights.transport == "cuda_ipc" and self.cluster.placement != "colocated":
            raise ValueError(
                f"weights.transport cuda_ipc with cluster.placement {self.cluster.placement}; expected colocated, since engines "
                "read what ranks hold on the same cards. Take transport store"
            )
        if self.weights.delta_every:
            raise ValueError(
                f"weights.transport {self.weights.transport} with weights.delta_every {self.weights.delta_every}; expected 0, "
                "since nothing is sent. Take transport store"
            )
        return self

    @model_validator(mode="after")
    def _devices_can_be_shared(self) -> Self:
        placement, share, parallel = self.cluster.placement, self.cluster.gpu_share, self.rollout.tensor_parallel
        ranks, workers = self.learner.ranks, self.rollout.workers
        if parallel > 1 and share < 1:
            raise ValueError(
                f"rollout.tensor_parallel is {parallel} beside cluster.gpu_share {share:g}; expected gpu_share 1: Ray gives "
                "nobody parts of several GPUs"
            )
        if placement == "colocated" and (workers.min != workers.max or workers.max * parallel > ranks):
            over = f" x rollout.tensor_parallel {parallel}" if parallel > 1 else ""
            raise ValueError(
                f"cluster.placement colocated puts engines on the learner ranks' devices, one on each; rollout.workers is "
                f"{workers.min} to {workers.max}{over}, expected a number whose devices are at most learner.ranks = {ranks}"
            )
        return self


class RLConfig(RLJob):
    """One RL run."""

    policy: str = Field(description="Hugging Face folder or name of the policy to train")

    @model_validator(mode="after")
    def _has_what_it_imitates(self) -> Self:
        if self.rl.ptx_coef and self.demonstrations is None:
            raise ValueError(
                f"rl.ptx_coef is {self.rl.ptx_coef:g}, but demonstrations is null; expected some to go on imitating"
            )
        return self
