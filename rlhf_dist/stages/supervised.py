"""Supervised stages on the learner group: fine-tuning on demonstrations, and a reward model from preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_dist.algorithms.losses import preference_loss_sum
from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Learner, Supervised, Timeouts
from rlhf_dist.data.examples import examples
from rlhf_dist.learner.engine import TrainedModel
from rlhf_dist.learner.group import GroupPlace, LearnerGroup, SupervisedBatch, start_group
from rlhf_dist.learner.rank import Loss, ModelSpec
from rlhf_dist.models import PackedBatch, response_positions

Progress = Callable[[str], None]


def sft_loss(model: TrainedModel, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Negative log-likelihood summed over the answer's tokens."""
    log_probs, entropy, _ = model(batch)
    return -log_probs.sum(), {"entropy": float(entropy.detach().sum())}


def reward_loss(model: TrainedModel, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Bradley-Terry loss summed over pairs; outputs alternate chosen, rejected."""
    scores = model(batch)
    chosen, rejected = scores[0::2], scores[1::2]
    facts = {"accuracy": (chosen > rejected).float().sum(), "margin": (chosen - rejected).detach().sum()}
    return preference_loss_sum(chosen, rejected), {name: float(value) for name, value in facts.items()}


@dataclass(frozen=True)
class SupervisedData:
    """What a supervised stage learns from: examples, and which of them belong together."""

    tokens: list[list[int]]
    selected: list[range]
    units: list[list[int]]
    counts: list[float]
    """Weight of each unit in the loss: tokens of a demonstration, 1 for a pair."""


def demonstrations(rows: Sequence[dict[str, Any]], tokenizer: Any) -> SupervisedData:
    """Prompt and completion pairs; the loss is on the completion and the end token after it."""
    tokens, selected = [], []
    for row in rows:
        prompt, answer = _prompt(tokenizer, row), _answer(tokenizer, row["completion"])
        tokens.append(prompt + answer)
        selected.append(response_positions(len(prompt), len(answer)))
    return SupervisedData(
        tokens, selected, [[i] for i in range(len(rows))], [float(len(chosen)) for chosen in selected]
    )


def preference_pairs(rows: Sequence[dict[str, Any]], tokenizer: Any) -> SupervisedData:
    """Chosen and rejected answers to one prompt, each scored at its last token, the end token."""
    tokens = []
    for row in rows:
        prompt = _prompt(tokenizer, row)
        tokens += [prompt + _answer(tokenizer, row[side]) for side in ("chosen", "rejected")]
    selected = [range(len(sequence) - 1, len(sequence)) for sequence in tokens]
    return SupervisedData(tokens, selected, [[2 * i, 2 * i + 1] for i in range(len(rows))], [1.0] * len(rows))


def steps_of(settings: Supervised, units: int) -> int:
    """Optimiser steps of a stage."""
    return settings.epochs * ((units - settings.held_out) // settings.batch_size)


@dataclass(frozen=True)
class LearnerPlace:
    """Where and how a stage's learner runs."""

    settings: Learner
    hidden: int
    gpu_share: float
    seed: int
    timeouts: Timeouts
    run_dir: Path
    interface: str | None = None


@dataclass(frozen=True)
class Stage:
    """One supervised stage: what it learns, from what, to where."""

    name: str
    title: str
    spec: ModelSpec
    data: SupervisedData
    loss: Loss
    settings: Supervised
    save_to: Path


def fit(stage: Stage, placed: LearnerPlace, tokenizer: Any, progress: Progress) -> dict[str, float]:
    """Start a learner, train the stage's model, save it in Hugging Face layout, stop the learner; held-out means."""
    import ray

    options = [
        {"num_cpus": 1, "num_gpus": placed.gpu_share, "name": f"{stage.name}-learner-{rank}"}
        for rank in range(placed.settings.ranks)
    ]
    place = GroupPlace(placed.settings, options, placed.run_dir, Watch(), placed.timeouts, placed.interface)
    group = start_group(place, {"model": stage.spec}, hidden=placed.hidden, seed=placed.seed)
    try:
        facts = train_supervised(group, stage, seed=placed.seed, progress=progress)
        with complete_or_absent(stage.save_to) as aside:
            group.save("model", aside.absolute())
            tokenizer.save_pretrained(aside)
    finally:
        for rank in group.ranks:
            ray.kill(rank)
    return facts


def train_supervised(learner: LearnerGroup, stage: Stage, *, seed: int, progress: Progress) -> dict[str, float]:
    """Epochs over shuffled batches; returns the means over the held-out share at the end.

    Args:
        learner: the group that holds the stage's model as `model`.
        stage: its data's last `settings.held_out` units are not trained on.
        seed: of the shuffling.
        progress: called with a note after each step.
    """
    import ray

    data, settings = stage.data, stage.settings
    stored = ray.put(examples(data.tokens, data.selected))
    kept = len(data.units) - settings.held_out
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(kept)
        for start in range(0, kept - settings.batch_size + 1, settings.batch_size):
            batch = _batch(stored, data, order[start : start + settings.batch_size].tolist())
            facts = learner.train_step("model", batch, stage.loss)
            progress(f"loss {facts['loss']:.3f}")
    return learner.train_step("model", _batch(stored, data, range(kept, len(data.units))), stage.loss, learn=False)


def _batch(stored: Any, data: SupervisedData, chosen: Sequence[int]) -> SupervisedBatch:
    units = [data.units[unit] for unit in chosen]
    lengths = [sum(len(data.tokens[example]) for example in unit) for unit in units]
    return SupervisedBatch(stored, units, lengths, count=sum(data.counts[unit] for unit in chosen))


def _prompt(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """The prompt as PPO will see it, with the tokens that the tokenizer puts before a text."""
    tokens: list[int] = tokenizer(row["prompt"])["input_ids"]
    return tokens


def _answer(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
