"""A policy learns from people's judgements without a reward model: DPO, IPO, KTO, ORPO, SimPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.config import DPOConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.tables import held_out
from rlhf_dist.data.unpaired import unpaired, with_mismatched
from rlhf_dist.errors import ConfigError, DataError
from rlhf_dist.feedback.aggregate import aggregate
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import check_same_tokenizer
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.kto import KTOLoss
from rlhf_dist.stages.preference_losses import DPOLoss, ORPOLoss, SimPOLoss
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.sft import OUTPUT
from rlhf_dist.stages.stage_checkpoints import BEGINNING, Keeper, Reached, newest, rewind
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

PreferenceLoss = DPOLoss | SimPOLoss | ORPOLoss | KTOLoss
TITLES = {
    "sigmoid": "Direct preference optimisation",
    "ipo": "Identity preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
    "orpo": "Odds-ratio preference optimisation",
    "simpo": "Simple preference optimisation",
}
NAMES = {"sigmoid": "DPO", "ipo": "IPO", "kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}


@dataclass(frozen=True)
class PreparedDPO:
    """What could be read and checked before a process is started."""

    encoder: Encoder
    learnt: ExampleSet
    kept: ExampleSet
    loss: PreferenceLoss
    ties: int = 0
    """Comparisons that KTO leaves out."""
    begin: Reached = BEGINNING

    def objective(self, config: DPOConfig) -> Objective:
        """What is learnt, before the reference was asked."""
        settle = self.loss.settled if isinstance(self.loss, KTOLoss) else None
        return Objective(self.learnt, self.kept, self.loss, config, settle)

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        what = "answers" if isinstance(self.loss, KTOLoss) else "comparisons"
        told = [f"{len(self.learnt.units)} {what}, {len(self.kept.units)} held out"]
        told += [self.loss.describe()] if isinstance(self.loss, KTOLoss) else []
        told += [f"left out: {self.ties} ties, which call no answer good or bad"] if self.ties else []
        return "\n".join([*told, *filter(None, [self.begin.told]), *self.encoder.notes()])

    def example(self) -> str:
        """The first judgement's first answer."""
        which = "an answer" if isinstance(self.loss, KTOLoss) else "the first of its two answers"
        return example_of(self.encoder, self.learnt, f"A prompt with {which}")


def prepare(config: DPOConfig, resume: Path | None = None) -> PreparedDPO:
    """Read tokenizer, judgements and, if the stage is resumed, a checkpoint, and check that they fit the model.

    Args:
        config: the stage's settings.
        resume: folder of a run that goes on from its newest checkpoint.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    begin = newest(config, resume) if resume else BEGINNING
    config = resolved(config)
    encoder = encoder_of(config.model)
    models = [("policy", config.model), *([("reference", _reference(config))] if config.needs_reference else [])]
    check_same_tokenizer(config.model, dict(models[1:]))
    judged, tokens = _judged(config, encoder)
    ties = 0
    if config.loss == "kto":
        ties = sum(one.kind == "comparisons" and one.label == 0.5 for one in judged)
        judged = unpaired(judged, desirable_above=config.desirable_above)
        if ties and not judged:
            raise DataError(
                f"data has {ties} comparisons, all of them ties; KTO expects an answer that is better or worse"
            )
    away = held_out([repr(one.prompt) for one in judged], config.held_out)

    def examples(kept: bool) -> ExampleSet:
        chosen: list[Judged] = [one for one, out in zip(judged, away, strict=True) if out == kept]
        made = judged_set(chosen, tokens, select="before")
        return with_mismatched(made, seed=config.seed) if config.loss == "kto" else made

    learnt, kept = examples(kept=False), examples(kept=True)
    check_fits(config, models, encoder, learnt, kept)
    return PreparedDPO(encoder, learnt, kept, _loss(config, learnt), ties, begin)


def _reference(config: DPOConfig) -> str:
    return config.reference or config.model


def _judged(config: DPOConfig, encoder: Encoder) -> tuple[Sequence[Judged], JudgedTokens]:
    """One judgement per question, of the kinds that the loss learns from, and their tokens."""
    kinds = ("comparisons", "scores") if config.loss == "kto" else ("comparisons",)
    others = [each for each in config.data if each.kind not in ("auto", *kinds)]
    if not config.data or others:
        found = f"a file of {others[0].kind}: {others[0].path}" if others else "nothing"
        raise ConfigError(
            f"data has {found}; {NAMES[config.loss]} learns from {' and '.join(kinds)}, expected at least one file of them"
        )
    raw = read_feedback(config.data, kinds=kinds, encoder=encoder)
    tokens = JudgedTokens(encoder, max_tokens=config.max_tokens, too_long=config.too_long)
    return tokens.fitting(aggregate(raw, config.aggregate).judged), tokens


def _loss(config: DPOConfig, learnt: ExampleSet) -> PreferenceLoss:
    if config.loss == "kto":
        return KTOLoss.of(config, learnt)
    if config.loss == "orpo":
        return ORPOLoss(config.odds_coef)
    if config.loss == "simpo":
        return SimPOLoss(config.scale, config.target_margin, config.label_smoothing)
    return DPOLoss(config.scale, config.loss, config.label_smoothing)


def run(config: DPOConfig, prepared: PreparedDPO, folder: RunFolder, shared: SharedLearner | None = None) -> None:
    """Train, on a learner group of its own or several stages', and leave the run folder complete."""

    def attempt(begin: Reached) -> tuple[Mapping[str, float], int]:
        with learner_of(config, folder.path, shared) as learner, Behind(learner) as behind:
            return _train(config, prepared, folder, behind, begin)

    with (
        folder.told_of_failure(),
        session(config.cluster, **ranks_of(config), namespace=namespace_of(folder.path)),
    ):
        keep_inputs(config, folder.path)
        found, parameters = restarting(config, folder, attempt, prepared.begin, lambda: newest(config, folder.path))
    learnt, kept = len(prepared.learnt.units), len(prepared.kept.units)
    what = "answers" if config.loss == "kto" else "comparisons"
    text = f"{learnt} {what} learnt, {kept} held out. {prepared.loss.told(found)}"
    folder.write_passages([Passage(TITLES[config.loss], text)])
    facts = {
        "steps": prepared.objective(config).steps,
        "eval_loss": found["loss"],
        **{name: value for name, value in found.items() if name != "loss"},
        "judgements": learnt,
        "held_out": kept,
        "model": f"{parameters / 1e6:.1f} M parameters",
    }
    folder.finish(facts)


def _train(
    config: DPOConfig, prepared: PreparedDPO, folder: RunFolder, behind: Behind, begin: Reached
) -> tuple[Mapping[str, float], int]:
    """Ask the reference where there is one, train and save; returns the last evaluation, and the number of parameters."""
    asked, config, learner = config, resolved(config), behind.learner
    objective = prepared.objective(config)
    if config.needs_reference:
        objective = _with_reference(config, objective, folder, learner)
    folder.expect(objective.steps)
    policy = ModelSpec(config.model, "policy", config.optimizer, objective.steps, lora=config.lora, state=begin.state)
    learner.load({"model": policy}, run_dir=folder.path, seed=config.seed)
    rewind(folder, begin)
    keeper = Keeper(behind, prepared.encoder, folder.path, asked, prepared.encoder.ends.ids)
    with folder.console.progress(f"{NAMES[config.loss]} on judgements", objective.steps, done=begin.step):
        found = train(learner, objective, folder, seed=config.seed, begin=begin, keep=keeper.keep)
    keeper.save(folder.path / OUTPUT)
    return found, learner.num_parameters


def _with_reference(config: DPOConfig, objective: Objective, folder: RunFolder, learner: LearnerGroup) -> Objective:
    """The same with what the reference thinks of each answer."""
    folder.tell("asking the reference")
    reference = ModelSpec(_reference(config), "policy", config.optimizer, objective.steps)
    learner.load({"model": reference}, run_dir=folder.path, seed=config.seed)
    learnt, kept = (_asked(learner, each) for each in (objective.train, objective.held_out))
    return replace(objective, train=learnt, held_out=kept)


def _asked(learner: LearnerGroup, examples: ExampleSet) -> ExampleSet:
    """Examples with the mean log-prob of every row's answer by the model that the learner holds."""
    import pyarrow as pa

    count = examples.table.num_rows
    rows = ExampleSet(examples.table, [[row] for row in range(count)], [1.0] * count)
    said = predictions(learner, rows)[:, 0].astype(np.float32)
    table = examples.table.append_column(pa.field("reference", pa.float32(), nullable=False), pa.array(said))
    return replace(examples, table=table)
