"""Direct preference optimisation: the policy learns from comparisons without a reward model."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from rlhf_dist.stages.reward_loss import accuracy
from rlhf_dist.stages.sft import OUTPUT
from rlhf_dist.stages.supervised import (
    Objective,
    check_fits,
    encoder_of,
    example_of,
    learner_of,
    predictions,
    save,
    train,
)


@dataclass(frozen=True)
class DPOLoss:
    """DPO's or IPO's loss on packed pairs; the column `reference` has each answer's mean log-prob under the reference."""

    beta: float
    kind: str
    label_smoothing: float

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

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        told = f"{len(self.learnt.units)} comparisons, {len(self.kept.units)} held out"
        return "\n".join([told, *self.encoder.notes()])

    def example(self) -> str:
        """The first comparison's first answer."""
        return example_of(self.encoder, self.learnt, "A prompt with the first of its two answers")


def prepare(config: DPOConfig) -> PreparedDPO:
    """Read tokenizer and comparisons, and check that they fit the model.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    config = resolved(config)
    encoder = encoder_of(config.model)
    check_same_tokenizer(config.model, {"reference": config.reference or config.model})
    others = [each for each in config.data if each.kind != "comparisons"]
    if not config.data or others:
        found = f"a file of {others[0].kind}: {others[0].path}" if others else "nothing"
        raise ConfigError(f"data has {found}; DPO learns from comparisons, expected at least one file of them")
    tokens = JudgedTokens(encoder, max_tokens=config.max_tokens, too_long=config.too_long)
    judged = tokens.fitting(aggregate(read_feedback(config.data), config.aggregate).judged)
    away = held_out([repr(one.prompt) for one in judged], config.held_out)

    def examples(kept: bool) -> ExampleSet:
        chosen: list[Judged] = [one for one, out in zip(judged, away, strict=True) if out == kept]
        return judged_set(chosen, tokens, select="before")

    learnt, kept = examples(kept=False), examples(kept=True)
    models = [("policy", config.model), ("reference", config.reference or config.model)]
    check_fits(config, models, encoder, learnt, kept)
    return PreparedDPO(encoder, learnt, kept)


def run(config: DPOConfig, prepared: PreparedDPO, folder: RunFolder) -> None:
    """Train, and leave the run folder complete."""
    config = resolved(config)
    loss = DPOLoss(config.beta, config.loss, config.label_smoothing)
    objective = Objective(prepared.learnt, prepared.kept, loss, config)
    reference = ModelSpec(config.reference or config.model, "policy", config.optimizer, objective.steps)
    policy = ModelSpec(config.model, "policy", config.optimizer, objective.steps, lora=config.lora)
    with (
        folder.told_of_failure(),
        session(config.cluster, cpus=config.learner.ranks, gpus=0, namespace=namespace_of(folder.path)),
        learner_of(config, folder.path) as learner,
    ):
        folder.rewind(0)
        folder.tell("asking the reference")
        learner.load({"model": reference}, run_dir=folder.path, seed=config.seed)
        learnt, kept = (_with_reference(learner, each) for each in (prepared.learnt, prepared.kept))
        objective = Objective(learnt, kept, loss, config)
        folder.expect(objective.steps)
        learner.load({"model": policy}, run_dir=folder.path, seed=config.seed)
        with folder.console.progress("DPO on comparisons", objective.steps):
            found = train(learner, objective, folder, seed=config.seed)
        save(learner, prepared.encoder.tokenizer, folder.path / OUTPUT, prepared.encoder.ends.ids)
    text = (
        f"{len(learnt.units)} comparisons learnt, {len(kept.units)} held out. There the preferred answer gained more "
        f"probability in {found['accuracy']:.1%}, by a margin of {found['margin']:.3f} in implicit reward; the preferred "
        f"answer's own implicit reward is {found['chosen_reward']:.3f} (below 0: it became less likely, too)."
    )
    folder.write_passages([Passage("Direct preference optimisation", text)])
    facts = {
        "steps": objective.steps,
        "eval_loss": found["loss"],
        "accuracy": found["accuracy"],
        "margin": found["margin"],
        "chosen_reward": found["chosen_reward"],
        "judgements": len(learnt.units),
        "held_out": len(kept.units),
        "model": f"{learner.num_parameters / 1e6:.1f} M parameters",
    }
    folder.finish(facts)


def _with_reference(learner: LearnerGroup, examples: ExampleSet) -> ExampleSet:
    """The same with what the reference thinks of each answer."""
    import pyarrow as pa

    said = predictions(learner, examples)[:, 0].astype(np.float32)
    table = examples.table.append_column(pa.field("reference", pa.float32(), nullable=False), pa.array(said))
    return replace(examples, table=table)
