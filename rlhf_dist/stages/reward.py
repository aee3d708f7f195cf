"""A reward model, or an ensemble, from people's comparisons, rankings, scores and comments."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.placement import engines_of
from rlhf_dist.cluster.session import has_gpus, namespace_of, session
from rlhf_dist.config import RewardConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.data.judgements import KINDS, JudgedTokens, judged_set
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.data.tables import held_out
from rlhf_dist.errors import ConfigError
from rlhf_dist.feedback.aggregate import Aggregated, aggregate
from rlhf_dist.feedback.comments import rate_comments, rating_tokens
from rlhf_dist.files import remove_folder, write_json_lines
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import check_same_tokenizer, load_tokenizer
from rlhf_dist.records import Prompt
from rlhf_dist.rollout.generator import ratings
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.scoring.reward_file import RewardFile
from rlhf_dist.scoring.reward_models import read_positions
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.fitting import check_stage
from rlhf_dist.stages.generation import answers_to, generating
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.reward_loss import RewardLoss
from rlhf_dist.stages.reward_passages import ALIKE, Outcome, passages
from rlhf_dist.stages.stage_checkpoints import (
    BEGINNING,
    MEMBERS,
    Keeper,
    Reached,
    newest,
    parameters_of,
    read_said,
    rewind,
)
from rlhf_dist.stages.supervised import (
    Objective,
    SharedLearner,
    check_fits,
    encoder_of,
    example_of,
    learner_of,
    predictions,
    ranks_of,
    train,
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
    begin: Reached = BEGINNING

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        kinds = Counter(one.kind for one in self.aggregated.judged)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        careless = [one.name for one in self.aggregated.annotators if one.careless]
        told = f"{len(self.raw)} judgements, aggregated to {told}" + (
            f"; suspected careless: {', '.join(careless)}" if careless else ""
        )
        return "\n".join([told, *filter(None, [self.begin.told]), *self.encoder.notes()])

    def example(self) -> str:
        """The first judgement's first answer, and where its score is read."""
        title = "A prompt with the first of the answers that were judged"
        return example_of(self.encoder, self.first, title, shift=0, mark="read for the score")


def prepare(config: RewardConfig, resume: Path | None = None) -> PreparedReward:
    """Read tokenizer, feedback and prompts, check that they fit the model, and make one judgement of several.

    Args:
        config: the stage's settings.
        resume: folder of a run that goes on from its newest checkpoint.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    begin = newest(config, resume) if resume else BEGINNING
    config = resolved(config)
    encoder = encoder_of(config.model)
    if not config.data:
        raise ConfigError("data is empty; expected at least one file of feedback")
    kinds = [kind for kind in KINDS if kind != "comments" or config.comment_judge is not None]
    raw = read_feedback(config.data, kinds=kinds, encoder=encoder)
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
    return PreparedReward(encoder, raw, made, tokens, prompts, examples.selected([0]), begin)


def run(config: RewardConfig, prepared: PreparedReward, folder: RunFolder, shared: SharedLearner | None = None) -> None:
    """Train the model or models, measure them on held-out judgements, and leave the run folder complete.

    Args:
        config: the stage's settings.
        prepared: what `prepare` read and checked.
        folder: where it leaves its files.
        shared: a pipeline's learner group; without, the stage has one of its own, once nobody generates any more.
    """
    asked, config = config, resolved(config)
    ranks, engines = ranks_of(config), engines_of(config.rollout)  # one after the other
    generates = config.comment_judge is not None or config.policy is not None
    needs = {key: max(ranks[key], engines[key]) for key in ranks} if generates else ranks
    with folder.told_of_failure(), session(config.cluster, **needs, namespace=namespace_of(folder.path)):
        keep_inputs(asked, folder.path)
        judged = _read_comments(config, prepared, folder)
        answers = _answers_of_policy(config, prepared, folder)
        lessons = _lessons(asked, prepared, judged, answers)

        def attempt(begin: Reached) -> Sequence[Path]:
            with learner_of(config, folder.path, shared) as learner, Behind(learner) as behind:
                return _train_members(lessons, folder, behind, begin)

        members = restarting(config, folder, attempt, prepared.begin, lambda: newest(asked, folder.path))
    outcome = _outcome(lessons, members, folder.path / OUTPUT)
    folder.write_passages(passages(outcome, prepared.aggregated))
    folder.finish(outcome.facts() | {"steps": outcome.steps, "model": outcome.size})
    remove_folder(folder.path / MEMBERS)


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


@dataclass(frozen=True)
class _Lessons:
    """What every member of the ensemble learns from, and is asked."""

    config: RewardConfig
    """As the user wrote it."""
    prepared: PreparedReward
    learnt: Sequence[Judged]
    kept: Sequence[Judged]
    answers: ExampleSet | None


def _lessons(
    config: RewardConfig, prepared: PreparedReward, judged: Sequence[Judged], answers: ExampleSet | None
) -> _Lessons:
    away = held_out([repr(one.prompt) for one in judged], config.held_out)
    learnt = [one for one, out in zip(judged, away, strict=True) if not out]
    kept = [one for one, out in zip(judged, away, strict=True) if out]
    return _Lessons(config, prepared, learnt, kept, answers)


def _train_members(lessons: _Lessons, folder: RunFolder, behind: Behind, begin: Reached) -> Sequence[Path]:
    """Train each member that is left with a seed of its own, and ask it about held-out answers; returns their folders."""
    asked, config, learner = lessons.config, resolved(lessons.config), behind.learner
    rewind(folder, begin)
    members = [*begin.members]
    for number in range(len(members), config.models):
        seed = config.seed + number
        objective = _objective(config, lessons.prepared, (lessons.learnt, lessons.kept), seed)
        steps, offset = objective.steps, number * objective.steps
        spec = ModelSpec(config.model, "value", config.optimizer, steps, heads=config.heads, lora=config.lora)
        folder.expect(steps * config.models)
        title = "Reward model" if config.models == 1 else f"Reward model {number + 1} of {config.models}"
        learner.load({"model": replace(spec, state=begin.state)}, run_dir=folder.path, seed=seed)
        keeper = Keeper(behind, lessons.prepared.encoder, folder.path, asked, member=number)
        with folder.console.progress(title, steps, done=begin.step - offset):
            train(learner, objective, folder, seed=seed, begin=begin, keep=keeper.keep, offset=offset)
        said = {"held_out": predictions(learner, objective.held_out)}
        if lessons.answers is not None:
            said["policy"] = predictions(learner, lessons.answers)
        members.append(keeper.keep_member(offset + steps, said))
        begin = Reached(offset + steps)
    return members


def _outcome(lessons: _Lessons, members: Sequence[Path], output: Path) -> Outcome:
    """Put the trained members together, as the ensemble's folder, and what they say."""
    config, prepared = lessons.config, lessons.prepared
    said = [read_said(member) for member in members]
    policy = np.concatenate([each["policy"] for each in said], axis=1) if lessons.answers is not None else None
    names = tuple("." if number == 0 else f"member-{number}" for number in range(len(members)))
    file = RewardFile(scores=config.scores, members=names, compare_scale=config.compare_scale, **_moments(policy))
    with complete_or_absent(output) as aside:
        for member, name in zip(members, names, strict=True):
            shutil.copytree(member / "model", aside / name, dirs_exist_ok=True)
        file.write(aside)
    units = _objective(config, prepared, (lessons.learnt, lessons.kept), config.seed)
    parts = np.concatenate([each["held_out"] for each in said], axis=1)
    rewards = [[parts[row] for row in unit] for unit in units.held_out.units]
    known = [one for one in lessons.kept if _coefficient(config, one.kind) > 0]
    raw = [one for one in prepared.raw if one.annotator and one.kind == "comparisons"]
    size, steps = f"{parameters_of(members[-1]) / 1e6:.1f} M parameters", units.steps * len(members)
    return Outcome(known, rewards, raw, policy, file, len(lessons.learnt), steps, size)


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
