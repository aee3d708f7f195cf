"""Settings of the stages that learn from data: fine-tuning, reward models, direct preference optimisation and its like."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlhf_dist.config.job import Job
from rlhf_dist.config.sections import DataFile, Lora, Optimizer, Prompts, Rollout, Section, TooLong

RATING_PROMPT = """\
A reader was asked what they think of an answer. From their comment alone, how good did they find it?
Question: {prompt}
Answer: {answer}
Comment: {comment}
Rating from 1 (useless) to 5 (perfect):"""


class Training(Section):
    """How long a stage trains, and in which steps."""

    epochs: int = Field(1, ge=1, le=1000, description="passes over the data")
    batch_size: int = Field(64, ge=1, description="demonstrations, or pieces of feedback, of one optimiser step")
    optimizer: Optimizer = Field(Optimizer(lr=1e-5), description="the stage's optimiser")
    lora: Lora | None = Field(None, description="train adapters instead of all weights; null: all weights")
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="optimiser steps between checkpoints, from which --resume goes on; 0: only the model, at the end",
    )


class Demonstrations(DataFile):
    """Answers to imitate: `prompt` and `completion`, or chat `messages`."""

    path: str = Field("", description="JSONL, Parquet or Arrow file, a folder of them, or a `datasets` name")
    held_out: float | str = Field(
        0.05, description="for evaluation: a share of the rows, or a file (or split) of its own"
    )
    max_tokens: int = Field(1024, ge=2, le=1_000_000, description="longest row, in tokens")
    too_long: TooLong = Field(
        "refuse",
        description="longer rows: refuse the file, truncate their answers (no end is learnt then), or leave them out",
    )


class SFT(Training):
    """Supervised fine-tuning."""

    data: Demonstrations = Demonstrations()


class SupervisedJob(Job):
    """A stage that learns from data, with one optimiser and without a critic."""

    def idle(self) -> dict[str, str]:
        """Of the sections that are PPO's too."""
        optimizer = "expected `optimizer`, by which this stage trains"
        return {
            "learner.policy": optimizer,
            "learner.value": optimizer,
            "learner.critic": "leave it out, since only PPO has a critic",
            "learner.lora": "expected `lora`, by which this stage has adapters",
            "telemetry.trace_iterations": "leave it out, since only PPO is traced",
        }


class SFTConfig(SFT, SupervisedJob):
    """One fine-tuning run."""

    folder: ClassVar[str] = "sft"

    model: str = Field(description="Hugging Face folder or name of the model to fine-tune")


class Feedback(DataFile):
    """A file of people's judgements."""

    kind: Literal["auto", "comparisons", "rankings", "scores", "comments"] = Field(
        "auto",
        description="what is read; auto: of each row what its column `kind` says, without one a comparison. Of rows that say "
        "their kind, only those of this one",
    )
    criterion: str | None = Field(
        None, min_length=1, description="a further question whose answers are read; null: those to the main one"
    )
    source: str = Field("", description="name in the evaluation; empty: the file's name")
    scale: tuple[float, float] = Field(
        (0.0, 1.0), description="worst and best score, mapped to 0 and 1; a row's own `scale` goes before"
    )

    @model_validator(mode="after")
    def _scale_is_wide(self) -> Feedback:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}; expected [worst, best] with worst below best")
        return self


class CommentJudge(Section):
    """A language model that reads a comment and says how good the answer was found."""

    model: str = Field(description="Hugging Face folder or name of the judge")
    prompt: str = Field(RATING_PROMPT, description="with {comment}, and {prompt} and {answer} where it wants them")
    ratings: tuple[str, ...] = Field(
        (" 1", " 2", " 3", " 4", " 5"), min_length=2, description="one token each, from worst to best"
    )

    @model_validator(mode="after")
    def _prompt_has_the_comment(self) -> CommentJudge:
        if "{comment}" not in self.prompt:
            raise ValueError("comment_judge.prompt lacks {comment}; expected it where the comment goes")
        return self


class FeedbackTraining(Training):
    """Training on people's judgements."""

    data: tuple[Feedback, ...] = Field((), description="the feedback, one entry per file")
    max_tokens: int = Field(1024, ge=2, le=1_000_000, description="longest prompt and answer, in tokens")
    too_long: TooLong = Field(
        "refuse",
        description="longer ones: refuse the files, truncate the prompts' beginnings, or leave the judgements out",
    )
    aggregate: Literal["none", "soft", "majority", "dawid-skene", "bradley-terry"] = Field(
        "soft",
        description="several annotators' judgements of one comparison become: themselves; the share that prefers a; the "
        "majority's choice; Dawid and Skene's posterior; or pairwise posteriors with annotators' reliabilities",
    )


class RewardModel(FeedbackTraining):
    """A reward model from feedback: L = score_coef L_score + compare_coef L_compare + language_coef L_language."""

    held_out: float = Field(0.1, gt=0, lt=1, description="share of the prompts that only evaluation sees")
    score_coef: float = Field(1.0, ge=0, description="weight of the scores' mean squared error")
    compare_coef: float = Field(1.0, ge=0, description="weight of the comparisons' and rankings' cross-entropy")
    language_coef: float = Field(1.0, ge=0, description="weight of the comments' mean squared error")
    compare_scale: float = Field(
        1.0, gt=0, description="how consistently people choose: P(a over b) = sigmoid(compare_scale (r_a - r_b))"
    )
    margin: bool = Field(False, description="use the comparisons' margins: log sigmoid(r_a - r_b - margin)")
    centre_coef: float = Field(0.0, ge=0, description="weight of (r_a + r_b)^2, which keeps scores around zero")
    scores: Literal["trajectory", "token-mean"] = Field(
        "trajectory", description="an answer's score: at its last token, or the mean over its tokens"
    )
    heads: int = Field(1, ge=1, le=64, description="heads of an ensemble that share the model")
    models: int = Field(1, ge=1, le=64, description="models of an ensemble, each trained with a seed of its own")
    comment_judge: CommentJudge | None = Field(None, description="reads the comments; null: they are left out")
    normalise_on: int = Field(256, ge=2, description="answers of the policy from which mean and std are taken")


class RewardConfig(RewardModel, SupervisedJob):
    """One reward-model run."""

    folder: ClassVar[str] = "reward"

    model: str = Field(description="Hugging Face folder or name of the model to start from, usually the SFT policy")
    policy: str | None = Field(None, description="its answers normalise the reward; null: no normalisation")
    prompts: Prompts | None = Field(None, description="what `policy` answers for that")
    rollout: Rollout = Field(
        Rollout(), description="how `policy` and the comment judge run; the judge, and on CPUs both, by transformers"
    )

    @model_validator(mode="after")
    def _can_normalise(self) -> RewardConfig:
        if (self.policy is None) != (self.prompts is None):
            raise ValueError("policy and prompts belong together; expected both, to normalise the reward, or neither")
        if any(feedback.kind == "comments" for feedback in self.data) and self.comment_judge is None:
            raise ValueError("data has comments, but comment_judge is null; expected a model that reads them")
        return self

    def idle(self) -> dict[str, str]:
        """Beside those, of how the policy is asked."""
        return {
            **super().idle(),
            "rollout.samples_per_prompt": "leave it out, since the policy answers each prompt once",
            "prompts.held_out": "expected `held_out`, the share of the judgements",
            "prompts.held_out_limit": "expected `normalise_on`, the number of answers",
        }


READ_BY = {
    "beta": ("sigmoid", "ipo", "kto", "simpo"),
    "label_smoothing": ("sigmoid", "simpo"),
    "reference": ("sigmoid", "ipo", "kto"),
    "gamma": ("simpo",),
    "odds_coef": ("orpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "desirable_above": ("kto",),
}
"""Settings of `DPO` that not every loss reads, and the losses that do."""


class DPO(FeedbackTraining):
    """A policy from people's judgements without a reward model; numbers that are null are those of the loss's paper."""

    held_out: float = Field(0.05, gt=0, lt=1, description="share of the prompts that only evaluation sees")
    loss: Literal["sigmoid", "ipo", "kto", "orpo", "simpo"] = Field(
        "sigmoid",
        description="DPO's (arXiv:2305.18290), or that of IPO (arXiv:2310.12036), KTO (arXiv:2402.01306: from scores, too), "
        "ORPO (arXiv:2403.07691) or SimPO (arXiv:2405.14734); the last two need no reference",
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="strength of the pull to the reference; of simpo, the scale of its rewards; null: 0.1, of simpo 2",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be wrong (sigmoid, simpo)")
    gamma: float | None = Field(
        None, ge=0, description="by how much the preferred answer's reward should win, in nats (simpo); null: beta / 2"
    )
    odds_coef: float = Field(
        0.1, ge=0, description="weight of the odds ratio beside the preferred answer's likelihood (orpo)"
    )
    desirable_weight: float | None = Field(
        None,
        gt=0,
        description="weight of desirable answers (kto); null: the nearest to 1 with which theirs together is 1 to 4/3 times "
        "that of undesirable ones",
    )
    undesirable_weight: float | None = Field(
        None, gt=0, description="weight of undesirable answers (kto); null: likewise"
    )
    desirable_above: float = Field(
        0.5, ge=0, lt=1, description="scores, from 0 to 1, above which an answer is desirable; else it is not (kto)"
    )

    @property
    def scale(self) -> float:
        """`beta`, or what the loss's paper takes for it."""
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)

    @property
    def target_margin(self) -> float:
        """`gamma`, or what SimPO's paper takes for it."""
        return self.scale / 2 if self.gamma is None else self.gamma

    @model_validator(mode="after")
    def _margin_can_be_reached(self) -> DPO:
        if self.loss == "simpo" and self.target_margin > 2 * self.scale:
            raise ValueError(
                f"gamma is {self.target_margin:g} beside beta {self.scale:g}, which asks for "
                f"{self.target_margin / self.scale:g} nats between the answers in every token; expected at most 2 beta, usually "
                "0.1 to 0.8 beta"
            )
        return self


class DPOConfig(DPO, SupervisedJob):
    """One run of direct preference optimisation, or of a method like it."""

    folder: ClassVar[str] = "dpo"

    model: str = Field(description="Hugging Face folder or name of the policy to train, usually the SFT policy")
    reference: str | None = Field(None, description="the reference policy; null: the policy as it starts")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with another."""
        return self.loss in READ_BY["reference"]

    def idle(self) -> dict[str, str]:
        """Beside those, what the chosen loss does not read."""
        unread = {key: losses for key, losses in READ_BY.items() if self.loss not in losses}
        return {
            **super().idle(),
            **{key: f"expected it beside `loss: {' or '.join(losses)}`" for key, losses in unread.items()},
        }
