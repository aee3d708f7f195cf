"""The objective of a run: independent choices, which a method's name fills in (`config/methods.py`, `algorithms/`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf_dist.config.effects import contradictions_of_algorithm, idle_of_algorithm, idle_of_correction
from rlhf_dist.config.methods import MethodName, method_named
from rlhf_dist.config.rewards import IMPORT_PATH
from rlhf_dist.config.sections import Section

OwnFunction = Annotated[str, Field(pattern=IMPORT_PATH)]
"""`package.module:function` of one's own."""
BaselineName = Literal[
    "critic",
    "leave_one_out",
    "group_mean",
    "length_weighted",
    "batch_mean",
    "running_mean",
    "greedy",
    "optimal_value",
    "none",
]
SurrogateName = Literal["clip", "sequence_clip", "weight_cap", "soft_gate", "squared", "plain"]
GROUP_BASELINES = frozenset({"leave_one_out", "group_mean", "length_weighted"})
"""Those that compare the answers to a prompt with each other."""


class Algorithm(Section):
    """What is estimated and minimised. Defaults are PPO's; `method` fills what is unset with another method's."""

    method: MethodName = Field(
        "ppo", description="fills what is unset with a method's settings; see `rlhf-dist algorithms`"
    )

    baseline: BaselineName | OwnFunction = Field(
        "critic", description="what an answer's reward is compared with, or `package.module:function`"
    )
    scale: Literal["none", "group", "batch"] | OwnFunction = Field(
        "none", description="advantages over the spread of rewards in a prompt's group, or in the batch, or a function"
    )
    whiten_advantages: bool = Field(
        True, description="zero mean and unit variance over the batch's tokens, all ranks together"
    )
    credit: Literal["answer", "to_go"] = Field(
        "answer",
        description="without a critic, a token is credited with all of an answer's rewards, or with those to come",
    )
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's lambda, of the critic's targets and of advantages")
    gae_lambda_policy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GAE's lambda of the advantages alone; null: gae_lambda (VC-PPO, arXiv:2503.01491)",
    )
    gae_length_alpha: float | None = Field(
        None,
        gt=0,
        description="lambda of the advantages of an answer of T tokens: 1 - 1 / (this T); null: not by length",
    )
    running_decay: float = Field(0.95, ge=0, lt=1, description="of the running mean of rewards, per iteration")
    reference_samples: int = Field(
        8, ge=1, description="answers of the reference from which V* of a prompt is estimated"
    )
    select: Literal["all", "best"] = Field(
        "all", description="best: advantage 1 for the best answer of each prompt, 0 for the others (RAFT)"
    )

    surrogate: SurrogateName | OwnFunction = Field("clip", description="what the policy minimises, or a function")
    clip_ratio: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to 1 ± this")
    clip_ratio_high: float | None = Field(None, gt=0, description="upper side of the clip, above 1; null: clip_ratio")
    dual_clip: float | None = Field(
        None, gt=1, description="largest ratio that counts where the advantage is negative; null: no such bound"
    )
    weight_cap: float = Field(5.0, ge=1, description="largest weight of a token, absolute (CISPO)")
    gate_temperature: float = Field(1.0, gt=0, description="of the soft gate, for advantages above 0 (SAPO)")
    gate_temperature_negative: float = Field(1.05, gt=0, description="of the soft gate, for advantages below 0")
    tau: float = Field(0.1, gt=0, description="weight of the squared loss's log-ratio: KL to its anchor costs this")
    anchor: Literal["old", "reference"] = Field("old", description="from which policy the squared loss measures")
    aggregate: Literal["fixed_length", "token_mean", "sequence_mean", "prompt_mean"] = Field(
        "token_mean", description="how the losses of tokens become one: decides how length weighs"
    )

    kl_coef: float = Field(0.05, ge=0, description="weight of the KL to the reference; 0: none")
    kl_in: Literal["reward", "loss"] = Field("reward", description="where the KL to the reference is taken off")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="estimate of the KL in the loss")
    kl_gradient: Literal["exact", "estimator"] = Field(
        "exact", description="of the KL in the loss: of the expected KL, score term included, or the estimator's own"
    )
    kl_target: float | None = Field(
        None, gt=0, description="KL, in nats, that an adaptive coefficient steers to; null: fixed coefficient"
    )
    kl_target_per: Literal["answer", "token"] = Field("answer", description="what kl_target is of")
    kl_horizon: int = Field(
        10_000, ge=1, description="samples over which the adaptive coefficient reacts, at least those of an iteration"
    )
    reference_every: int | None = Field(
        None, ge=1, description="iterations after which the reference moves to the policy; null: it stays"
    )
    reference_mix: float = Field(
        1.0, gt=0, le=1, description="share of the policy in the reference that moves; 1: it becomes the policy"
    )

    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy; with a target, where it starts")
    entropy_in: Literal["loss", "reward"] = Field(
        "loss", description="loss: a bonus of each token's entropy; reward: -log pi of each token (maximum entropy)"
    )
    entropy_target: float | None = Field(
        None, gt=0, description="entropy, in nats per token, that a dual coefficient steers to; null: fixed coefficient"
    )
    entropy_lr: float = Field(0.05, gt=0, le=1, description="step of the logarithm of the dual coefficient")

    score_clip: float | None = Field(None, gt=0, description="reward scores are clipped to ± this; null: not at all")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken off the score of an answer cut at max_new_tokens")
    truncated: Literal["score", "mask"] = Field(
        "score", description="answers cut at max_new_tokens: learnt from by their score, or left out of the loss"
    )
    overlong_share: float = Field(
        0.0, ge=0, lt=1, description="last part of max_new_tokens over which the score falls; 0: none (DAPO)"
    )
    overlong_penalty: float = Field(1.0, gt=0, description="taken off the score at max_new_tokens")
    filter_groups: bool = Field(
        False, description="leave out prompts all of whose answers score the same, and sample others for them (DAPO)"
    )
    filter_rounds: int = Field(10, ge=1, description="most times that an iteration samples")
    positive_nll_coef: float = Field(
        0.0, ge=0, description="weight of -log pi of answers with a score above 0 (VAPO, arXiv:2504.05118)"
    )
    teacher_coef: float = Field(0.0, ge=0, description="weight of log teacher - log pi in each token's reward")

    clip_value: float = Field(0.2, gt=0, description="the new value is clipped to the old value ± this")
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss where the critic is a head")
    critic_warmup: int = Field(0, ge=0, description="iterations at first in which only the critic learns")

    @model_validator(mode="before")
    @classmethod
    def _filled_by_the_method(cls, tree: Any) -> Any:
        method = method_named(tree.get("method", "ppo")) if isinstance(tree, dict) else None
        return {**method.algorithm, **tree} if method is not None else tree

    @property
    def has_critic(self) -> bool:
        """Whether anything needs values."""
        return self.baseline == "critic"

    @property
    def compares_answers(self) -> bool:
        """Whether the answers to a prompt are compared with each other, so that a single one means nothing."""
        return self.baseline in GROUP_BASELINES or self.scale == "group" or self.select == "best" or self.filter_groups

    @property
    def fewest_answers(self) -> int:
        """Of each prompt, without which it is left out."""
        return 2 if self.compares_answers else 1

    @property
    def pulls(self) -> bool:
        """Whether the KL to the reference is taken off, whatever its coefficient is now."""
        return self.kl_coef > 0 or self.kl_target is not None

    @property
    def pulls_to_reference(self) -> bool:
        """Whether the objective has the reference in it."""
        return self.pulls or (self.surrogate == "squared" and self.anchor == "reference")

    @property
    def entropy_counts(self) -> bool:
        """Whether the objective has entropy in it, whatever its coefficient is now."""
        return self.entropy_coef > 0 or self.entropy_target is not None

    def idle(self) -> dict[str, str]:
        """Settings that nothing reads, and what would; by their names here."""
        return idle_of_algorithm(self)

    @model_validator(mode="after")
    def _choices_fit_each_other(self) -> Self:
        for found in contradictions_of_algorithm(self):
            raise ValueError(found)
        return self


class Correction(Section):
    """What makes up for samples of another policy than the one that learns: mu sampled, pi_p is the proximal, pi the current."""

    proximal: Literal["recompute", "rollout"] = Field(
        "recompute",
        description="policy that ratios start from: the learner's before the update, or the engine's own log-probs",
    )
    weight: Literal["none", "token", "sequence"] = Field(
        "none", description="pi_p / mu by which losses are weighed: of each token, or of the whole answer"
    )
    cap: float = Field(2.0, gt=1, description="largest weight")
    floor: float = Field(0.0, ge=0, lt=1, description="smallest weight, where those outside are zeroed")
    outside: Literal["truncate", "zero"] = Field(
        "truncate", description="weights above the cap become the cap, or those outside floor and cap become 0"
    )
    reject: tuple[float, float] | None = Field(
        None, description="bounds of the geometric mean of an answer's pi_p / mu, outside of which it is left out"
    )
    veto: float | None = Field(
        None, gt=0, lt=1, description="an answer with a token of pi_p / mu below this is left out"
    )

    @property
    def acts(self) -> bool:
        """Whether it changes any loss, given weights that are not all 1."""
        return self.weight != "none" or self.reject is not None or self.veto is not None

    def idle(self) -> dict[str, str]:
        """Settings that nothing reads, and what would; by their names here."""
        return idle_of_correction(self)

    @model_validator(mode="after")
    def _counts_once(self) -> Self:
        if self.proximal == "rollout" and self.acts:
            raise ValueError(
                "correction.proximal rollout has pi / mu in the surrogate's ratio already; beside it a weight, reject or veto "
                "would count the same twice. Expected proximal recompute, or none of them"
            )
        if self.reject is not None and not 0 < self.reject[0] < 1 < self.reject[1]:
            raise ValueError(f"correction.reject is {list(self.reject)}; expected bounds around 1, e.g. [0.99, 1.01]")
        return self
