"""Direct preference optimisation: the policy learns from comparisons without a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rlhf_dist.algorithms.feedback_losses import dpo_losses, ipo_losses
from rlhf_dist.algorithms.ragged import segment_sums
from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.config import DPOConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.tables import held_out
from rlhf_dist.errors import ConfigError
from rlhf_dist.feedback.aggregate import aggregate
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import check_same_tokenizer
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.reward_loss import accuracy
from rlhf_dist.stages.sft import OUTPUT
from rlhf_dist.stages.stage_checkpoints import BEGINNING, Keeper, Reached, newest, rewind
from rlhf_dist.stages.supervised import (
    Objective,
    check_fits,
    encoder_of,
    example_of,
    learner_of,
    predictions,
    ranks_of,
    train,
)


@dataclass(frozen=True)
class DPOLoss:
    """DPO's or IPO's loss on packed pairs; the column `reference` has each answer's mean log-prob under the reference."""

    beta: float
    kind: str
    label_smoothing: float

    @classmethod
    def of(cls, config: DPOConfig) -> DPOLoss:
        """As a stage's settings have it."""
        return cls(config.beta, config.loss, config.label_smoothing)

    def __call__(self, model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss, and sums of hits, implicit reward margins and the chosen answer's implicit reward."""
        log_probs, _, _ = model(batch.packed)
        per_token = segment_sums(log_probs, batch.lengths) / batch.lengths - batch.targets["reference"]
        ratios = per_token if self.kind == "ipo" else per_token * batch.lengths
        a, b, labels = ratios[0::2], ratios[1::2], batch.targets["label"][0::2]
        if self.kind == "ipo":
            losses = ipo_losses(a, b, labels, beta=self.beta)
        else:
            losses = dpo_losses(a, b, labels, beta=self.beta, label_smoothing=self.label_smoothing)
        gap, side = (a - b).detach(), 2 * labels - 1
        facts = {
            "accuracy": accuracy(gap, labels).sum(),
            "margin": self.beta * (gap * side).sum(),
            "chosen_reward": self.beta * torch.where(labels >= 0.5, a, b).detach().sum(),
        }
        return losses.sum(), {name: float(value) for name, value in facts.items()}


@dataclass(frozen=True)
class PreparedDPO:
    """What could be read and checked before a process is started."""

    encoder: Encoder
    learnt: ExampleSet
    kept: ExampleSet
    begin: Reached = BEGINNING

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        told = f"{len(self.learnt.units)} comparisons, {len(self.kept.units)} held out"
        return "\n".join([told, *filter(None, [self.begin.told]), *self.encoder.notes()])

    def example(self) -> str:
        """The first comparison's first answer."""
        return example_of(self.encoder, self.learnt, "A prompt with the first of its two answers")


def prepare(config: DPOConfig, resume: Path | None = None) -> PreparedDPO:
    """Read tokenizer, comparisons and, if the stage is resumed, a checkpoint, and check that they fit the model.

    Args:
        config: the stage's settings.
        resume: folder of a run that goes on from its newest checkpoint.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    begin = newest(config, resume) if resume else BEGINNING
    config = resolved(config)
    encoder = encoder_of(config.model)
    check_same_tokenizer(config.model, {"reference": config.reference or config.model})
    others = [each for each in config.data if each.kind not in ("auto", "comparisons")]
    if not config.data or others:
        found = f"a file of {others[0].kind}: {others[0].path}" if others else "nothing"
        raise ConfigError(f"data has {found}; DPO learns from comparisons, expected at least one file of them")
    raw = read_feedback(config.data, kinds=("comparisons",), encoder=encoder)
    tokens = JudgedTokens(encoder, max_tokens=config.max_tokens, too_long=config.too_long)
    judged = tokens.fitting(aggregate(raw, config.aggregate).judged)
    away = held_out([repr(one.prompt) for one in judged], config.held_out)

    def examples(kept: bool) -> ExampleSet:
        chosen: list[Judged] = [one for one, out in zip(judged, away, strict=True) if out == kept]
        return judged_set(chosen, tokens, select="before")

    learnt, kept = examples(kept=False), examples(kept=True)
    models = [("policy", config.model), ("reference", config.reference or config.model)]
    check_fits(config, models, encoder, learnt, kept)
    return PreparedDPO(encoder, learnt, kept, begin)


def run(config: DPOConfig, prepared: PreparedDPO, folder: RunFolder) -> None:
    """Train, and leave the run folder complete."""

    def attempt(begin: Reached) -> tuple[Mapping[str, float], int]:
        with learner_of(config, folder.path) as learner:
            return _train(config, prepared, folder, learner, begin)

    with (
        folder.told_of_failure(),
        session(config.cluster, **ranks_of(config), namespace=namespace_of(folder.path)),
    ):
        keep_inputs(config, folder.path)
        found, parameters = restarting(config, folder, attempt, prepared.begin, lambda: newest(config, folder.path))
    learnt, kept = len(prepared.learnt.units), len(prepared.kept.units)
    text = (
        f"{learnt} comparisons learnt, {kept} held out. There the preferred answer gained more "
        f"probability in {found['accuracy']:.1%}, by a margin of {found['margin']:.3f} in implicit reward; the preferred "
        f"answer's own implicit reward is {found['chosen_reward']:.3f} (below 0: it became less likely, too)."
    )
    folder.write_passages([Passage("Direct preference optimisation", text)])
    facts = {
        "steps": Objective(prepared.learnt, prepared.kept, DPOLoss.of(config), config).steps,
        "eval_loss": found["loss"],
        "accuracy": found["accuracy"],
        "margin": found["margin"],
        "chosen_reward": found["chosen_reward"],
        "judgements": learnt,
        "held_out": kept,
        "model": f"{parameters / 1e6:.1f} M parameters",
    }
    folder.finish(facts)


def _train(
    config: DPOConfig, prepared: PreparedDPO, folder: RunFolder, learner: LearnerGroup, begin: Reached
) -> tuple[Mapping[str, float], int]:
    """Ask the reference, train and save; returns the last evaluation, and the policy's number of parameters."""
    asked, config = config, resolved(config)
    plain = Objective(prepared.learnt, prepared.kept, DPOLoss.of(config), config)
    folder.tell("asking the reference")
    reference = ModelSpec(config.reference or config.model, "policy", config.optimizer, plain.steps)
    learner.load({"model": reference}, run_dir=folder.path, seed=config.seed)
    learnt, kept = (_with_reference(learner, each) for each in (plain.train, plain.held_out))
    objective = replace(plain, train=learnt, held_out=kept)
    folder.expect(objective.steps)
    policy = ModelSpec(config.model, "policy", config.optimizer, objective.steps, lora=config.lora, state=begin.state)
    learner.load({"model": policy}, run_dir=folder.path, seed=config.seed)
    rewind(folder, begin)
    keeper = Keeper(learner, prepared.encoder, folder.path, asked, prepared.encoder.ends.ids)
    with folder.console.progress("DPO on comparisons", objective.steps, done=begin.step):
        found = train(learner, objective, folder, seed=config.seed, begin=begin, keep=keeper.keep)
    keeper.save(folder.path / OUTPUT)
    return found, learner.num_parameters


def _with_reference(learner: LearnerGroup, examples: ExampleSet) -> ExampleSet:
    """The same with what the reference thinks of each answer."""
    import pyarrow as pa

    said = predictions(learner, examples)[:, 0].astype(np.float32)
    table = examples.table.append_column(pa.field("reference", pa.float32(), nullable=False), pa.array(said))
    return replace(examples, table=table)
