"""Supervised fine-tuning: the policy learns to say what demonstrations say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.config import Demonstrations, SFTConfig
from rlhf_dist.data.demonstrations import (
    Demonstration,
    demonstration_set,
    length_statistics,
    read_demonstrations,
    split_demonstrations,
)
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import DataError
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.names import POLICY
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.stage_checkpoints import BEGINNING, Keeper, Reached, newest, rewind
from rlhf_dist.stages.supervised import (
    Objective,
    SharedLearner,
    check_fits,
    encoder_of,
    example_of,
    learner_of,
    ranks_of,
    train,
)

OUTPUT = POLICY


def sft_loss(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Negative log-likelihood summed over the assistant's tokens."""
    log_probs, entropy, _ = model(batch.packed)
    return -log_probs.sum(), {"entropy": float(entropy.detach().sum())}


@dataclass(frozen=True)
class PreparedSFT:
    """What could be read and checked before a process is started."""

    objective: Objective
    encoder: Encoder
    lengths: dict[str, float]
    begin: Reached = BEGINNING

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        told = (
            f"{len(self.objective.train.units)} demonstrations, {len(self.objective.held_out.units)} held out; "
            f"{self.lengths['tokens/mean']:.0f} tokens in the mean, {self.lengths['tokens/max']:.0f} at most; "
            f"{self.objective.steps} steps"
        )
        return "\n".join([told, *filter(None, [self.begin.told]), *self.encoder.notes()])

    def example(self) -> str:
        """The first demonstration, and what is learnt of it."""
        return example_of(self.encoder, self.objective.train, "A demonstration")


def prepare(config: SFTConfig, resume: Path | None = None) -> PreparedSFT:
    """Read tokenizer, data and, if the stage is resumed, a checkpoint, and check that they fit the model.

    Args:
        config: the stage's settings.
        resume: folder of a run that goes on from its newest checkpoint.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    begin = newest(config, resume) if resume else BEGINNING
    config = resolved(config)
    encoder = encoder_of(config.model)
    learnt, kept = demonstrations(config.data, encoder)
    objective = Objective(demonstration_set(learnt), demonstration_set(kept), sft_loss, config)
    check_fits(config, [("policy", config.model)], encoder, objective.train, objective.held_out)
    return PreparedSFT(objective, encoder, length_statistics([*learnt, *kept]), begin)


def demonstrations(
    settings: Demonstrations, encoder: Encoder
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """Demonstrations to learn, and demonstrations to evaluate on."""

    def read(path: str, split: str) -> list[Demonstration]:
        return read_demonstrations(path, encoder, max_tokens=settings.max_tokens, split=split, settings=settings)

    if settings.held_out in (settings.path, settings.split):
        raise DataError(
            f"data.held_out is {settings.held_out!r}, which is what is learnt; expected a share, another split, or another file"
        )
    rows = read(settings.path, settings.split)
    if not isinstance(settings.held_out, str):
        return split_demonstrations(rows, settings.held_out)
    own_file = "/" in settings.held_out or Path(settings.held_out).suffix
    return rows, read(settings.held_out, settings.split) if own_file else read(settings.path, settings.held_out)


def run(config: SFTConfig, prepared: PreparedSFT, folder: RunFolder, shared: SharedLearner | None = None) -> None:
    """Fine-tune, on a learner group of its own or a pipeline's, and leave the run folder complete."""
    objective, steps, encoder = prepared.objective, prepared.objective.steps, prepared.encoder
    model = resolved(config).model
    folder.expect(steps)

    def attempt(begin: Reached) -> tuple[Mapping[str, float], int]:
        with learner_of(config, folder.path, shared) as learner, Behind(learner) as behind:
            spec = ModelSpec(model, "policy", config.optimizer, steps, lora=config.lora, state=begin.state)
            learner.load({"model": spec}, run_dir=folder.path, seed=config.seed)
            rewind(folder, begin)
            keeper = Keeper(behind, encoder, folder.path, config, encoder.ends.ids)
            with folder.console.progress("SFT on demonstrations", steps, done=begin.step):
                found = train(learner, objective, folder, seed=config.seed, begin=begin, keep=keeper.keep)
            keeper.save(folder.path / OUTPUT)
            return found, learner.num_parameters

    with (
        folder.told_of_failure(),
        session(config.cluster, **ranks_of(config), namespace=namespace_of(folder.path)),
    ):
        keep_inputs(config, folder.path)
        found, parameters = restarting(config, folder, attempt, prepared.begin, lambda: newest(config, folder.path))
    perplexity = math.exp(min(found["loss"], 700.0))
    folder.write_passages([_passage(prepared, found["loss"], perplexity)])
    folder.finish(
        {
            "steps": prepared.objective.steps,
            "eval_loss": found["loss"],
            "eval_perplexity": perplexity,
            "demonstrations": len(prepared.objective.train.units),
            "held_out": len(prepared.objective.held_out.units),
            "lengths": prepared.lengths,
            "model": f"{parameters / 1e6:.1f} M parameters",
        }
    )


def _passage(prepared: PreparedSFT, loss: float, perplexity: float) -> Passage:
    lengths = prepared.lengths
    rows = tuple(
        (title, *(f"{lengths[f'{name}/{part}']:.0f}" for part in ("mean", "p50", "p95", "max")))
        for title, name in (("whole row", "tokens"), ("answer", "answer_tokens"))
    )
    learnt, kept = prepared.objective.train.units, prepared.objective.held_out.units
    text = (
        f"{len(learnt)} demonstrations, {len(kept)} held out: loss {loss:.3f} "
        f"nats per token of the answers, perplexity {perplexity:.2f}. Lengths in tokens:"
    )
    return Passage("Fine-tuning", text, ("", "mean", "median", "95th percentile", "longest"), rows)
