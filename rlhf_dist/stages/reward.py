"""A reward model, or an ensemble, from people's comparisons, rankings, scores and comments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.session import has_gpus, namespace_of, session
from rlhf_dist.config import RewardConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.data.tables import held_out
from rlhf_dist.errors import ConfigError
from rlhf_dist.feedback.aggregate import Aggregated, aggregate
from rlhf_dist.feedback.comments import rate_comments, rating_tokens
from rlhf_dist.files import write_json_lines
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import check_same_tokenizer, load_tokenizer
from rlhf_dist.records import Prompt
from rlhf_dist.rollout.generator import ratings
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.scoring.reward_file import RewardFile
from rlhf_dist.scoring.reward_models import read_positions
from rlhf_dist.stages.fitting import check_stage
from rlhf_dist.stages.generation import answers_to, generating
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.reward_loss import RewardLoss
from rlhf_dist.stages.reward_passages import ALIKE, Outcome, passages
from rlhf_dist.stages.supervised import (
    Objective,
    check_fits,
    encoder_of,
    example_of,
    learner_of,
    predictions,
    train,
    write_model,
)
from rlhf_dist.store.row import rows_of

OUTPUT = "reward_model"
"""The trained model's folder within the run's."""


@dataclass(frozen=True)
class PreparedReward:
    """What could be read and checked before a process is started."""

    encoder: Encoder
    raw: list[Judged]
    aggregated: Aggregated
    tokens: JudgedTokens
    prompts: list[Prompt]
    first: ExampleSet
    """The examples of the first judgement."""

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        kinds = Counter(one.kind for one in self.aggregated.judged)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        careless = [one.name for one in self.aggregated.annotators if one.careless]
        told = f"{len(self.raw)} judgements, aggregated to {told}" + (
            f"; suspected careless: {', '.join(careless)}" if careless else ""
        )
        return "\n".join([told, *self.encoder.notes()])

    def example(self) -> str:
        """The first judgement's first answer, and where its score is read."""
        title = "A prompt with the first of the answers that were judged"
        return example_of(self.encoder, self.first, title, shift=0, mark="read for the score")


def prepare(config: RewardConfig) -> PreparedReward:
    """Read tokenizer, feedback and prompts, check that they fit the model, and make one judgement of several.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    config = resolved(config)
    encoder = encoder_of(config.model)
    if not config.data:
        raise ConfigError("data is empty; expected at least one file of feedback")
    raw = read_feedback(config.data)
    made = aggregate(raw, config.aggregate)
    tokens = JudgedTokens(encoder, max_tokens=config.max_tokens, too_long=config.too_long)
    made = replace(made, judged=tokens.fitting(made.judged))
    examples = judged_set(made.judged, tokens, select="answer" if config.scores == "token-mean" else "last")
    check_fits(config, [("start", config.model)], encoder, examples)
    prompts: list[Prompt] = []
    if config.policy is not None and config.prompts is not None:
        check_same_tokenizer(config.model, {"policy": config.policy})
        longest = config.prompts.max_tokens + config.rollout.max_new_tokens
        check_stage(config, [("policy", config.policy), ("start", config.model)], encoder, longest)
        # As the policy is given them; a reward model need not know chats to score token ids.
        asked = encoder_of(config.policy)
        prompts = read_prompts(config.prompts, asked)[: config.normalise_on]
        for note in asked.notes():
            encoder.tell(note)
    if config.comment_judge is not None:
        rating_tokens(config.comment_judge, load_tokenizer(config.comment_judge.model))
    return PreparedReward(encoder, raw, made, tokens, prompts, examples.selected([0]))


def run(config: RewardConfig, prepared: PreparedReward, folder: RunFolder, shared: LearnerGroup | None = None) -> None:
    """Train the model or models, measure them on held-out judgements, and leave the run folder complete.

    Args:
        config: the stage's settings.
        prepared: what `prepare` read and checked.
        folder: where it leaves its files.
        shared: a pipeline's learner group; without, the stage has one of its own, once nobody generates any more.
    """
    config = resolved(config)
    cpus = max(config.learner.ranks, config.rollout.workers.min)
    with (
        folder.told_of_failure(),
        session(config.cluster, cpus=cpus, gpus=0, namespace=namespace_of(folder.path)),
    ):
        folder.rewind(0)
        judged = _read_comments(config, prepared, folder)
        answers = _answers_of_policy(config, prepared, folder)
        with learner_of(config, folder.path, shared) as learner:
            outcome = _train_members(config, prepared, judged, answers, (folder, learner))
    folder.write_passages(passages(outcome, prepared.aggregated))
    folder.finish(outcome.facts() | {"steps": outcome.steps, "model": outcome.size})


def _read_comments(config: RewardConfig, prepared: PreparedReward, folder: RunFolder) -> list[Judged]:
    """All judgements, comments with the rating that the judge reads from them; the ratings are kept beside."""
    judged = prepared.aggregated.judged
    comments = [one for one in judged if one.kind == "comments"]
    if not comments or config.comment_judge is None:
        return judged
    folder.tell("reading comments")
    judge = config.comment_judge
    asked = rate_comments(comments, judge, load_tokenizer(judge.model))
    longest = max(len(tokens) for tokens in asked.prompts) + 1
    with generating(
        judge.model,
        # One token is read of each prompt and none is decoded: an engine built for decoding would only start more slowly.
        config.rollout.model_copy(update={"engine": "transformers"}),
        config.timeouts,
        folder.path,
        max_sequence=longest,
        learner=config.learner,
        seed=config.seed,
    ) as judges:
        told = ratings(judges, asked.prompts, asked.choices, timeout_s=config.timeouts.batch)
    rated = asked.read(told)
    write_json_lines(folder.path / "comments.jsonl", rated.rows())
    return [*(one for one in judged if one.kind != "comments"), *rated.judged]


def _answers_of_policy(config: RewardConfig, prepared: PreparedReward, folder: RunFolder) -> ExampleSet | None:
    """The SFT policy's answers, whose rewards will have mean 0 and std 1."""
    if config.policy is None or config.prompts is None:
        return None
    folder.tell("sampling the policy")
    # So few answers are generated sooner, on CPUs, than vLLM starts.
    rollout = config.rollout if has_gpus() else config.rollout.model_copy(update={"engine": "transformers"})
    with generating(
        config.policy,
        rollout,
        config.timeouts,
        folder.path,
        max_sequence=config.prompts.max_tokens + config.rollout.max_new_tokens,
        learner=config.learner,
        seed=config.seed,
    ) as generators:
        rows = rows_of(answers_to(prepared.prompts, generators, config.timeouts))
    table = example_table([row.tokens for row in rows], [read_positions(row, config.scores) for row in rows])
    return ExampleSet(table, [[number] for number in range(len(rows))], [1.0] * len(rows))


def _train_members(
    config: RewardConfig,
    prepared: PreparedReward,
    judged: Sequence[Judged],
    answers: ExampleSet | None,
    where: tuple[RunFolder, LearnerGroup],
) -> Outcome:
    """Train each member of the ensemble with a seed of its own, and collect what it says of held-out answers."""
    folder, learner = where
    away = held_out([repr(one.prompt) for one in judged], config.held_out)
    learnt = [one for one, out in zip(judged, away, strict=True) if not out]
    kept = [one for one, out in zip(judged, away, strict=True) if out]
    said, said_of_policy, steps, size = [], [], 0, 0
    members = tuple("." if member == 0 else f"member-{member}" for member in range(config.models))
    with complete_or_absent(folder.path / OUTPUT) as aside:
        for number, member in enumerate(members):
            seed = config.seed + number
            objective = _objective(config, prepared, (learnt, kept), seed)
            spec = ModelSpec(
                config.model, "value", config.optimizer, objective.steps, heads=config.heads, lora=config.lora
            )
            folder.expect(objective.steps * len(members))
            title = "Reward model" if len(members) == 1 else f"Reward model {number + 1} of {len(members)}"
            learner.load({"model": spec}, run_dir=folder.path, seed=seed)
            with folder.console.progress(title, objective.steps):
                train(learner, objective, folder, seed=seed, offset=steps)
            said.append(predictions(learner, objective.held_out))
            if answers is not None:
                said_of_policy.append(predictions(learner, answers))
            write_model(learner, prepared.encoder.tokenizer, aside / member)
            steps, size = steps + objective.steps, learner.num_parameters
        policy = np.concatenate(said_of_policy, axis=1) if said_of_policy else None
        file = RewardFile(scores=config.scores, members=members, compare_scale=config.compare_scale, **_moments(policy))
        file.write(aside)
    units = objective.held_out.units
    parts = np.concatenate(said, axis=1)
    known = [one for one in kept if _coefficient(config, one.kind) > 0]
    rewards = [[parts[row] for row in unit] for unit in units]
    raw = [one for one in prepared.raw if one.annotator and one.kind == "comparisons"]
    return Outcome(known, rewards, raw, policy, file, len(learnt), steps, f"{size / 1e6:.1f} M parameters")


def _objective(
    config: RewardConfig, prepared: PreparedReward, parts: tuple[Sequence[Judged], Sequence[Judged]], seed: int
) -> Objective:
    """One member's, of the judgements to learn from and those held out."""
    learnt, kept = parts
    return Objective(
        _examples(config, prepared, learnt, heads=config.heads, seed=seed),
        # One weight for all heads: what is measured is not resampled.
        _examples(config, prepared, kept, heads=1, seed=seed),
        RewardLoss(config.compare_scale, config.margin, config.centre_coef),
        config,
    )


def _examples(
    config: RewardConfig, prepared: PreparedReward, judged: Sequence[Judged], *, heads: int, seed: int
) -> ExampleSet:
    return judged_set(
        judged,
        prepared.tokens,
        select="answer" if config.scores == "token-mean" else "last",
        coefficients={kind: _coefficient(config, kind) for kind in ("scores", "comparisons", "rankings", "comments")},
        heads=heads,
        seed=seed,
    )


def _coefficient(config: RewardConfig, kind: str) -> float:
    return {"scores": config.score_coef, "comments": config.language_coef}.get(kind, config.compare_coef)


def _moments(policy: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    """Those of `RewardFile`; answers that all score alike leave the scale as it is."""
    if policy is None:
        return {}
    std = float(policy.mean(1).std())
    return {"means": tuple(policy.mean(0).tolist()), "std": std if std > ALIKE else 1.0}
