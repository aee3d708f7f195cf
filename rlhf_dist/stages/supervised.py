"""What SFT, reward models and DPO share: epochs over an `ExampleSet` on the learner group, with a held-out part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_dist.cluster.placement import lay_out_ranks
from rlhf_dist.cluster.session import cores_per_gpu, has_gpus
from rlhf_dist.config import Job, Training
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.example_view import view
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.rank import Loss
from rlhf_dist.learner.starting import GroupPlace, start_group
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.models import ends_of, load_tokenizer
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.stages.fitting import check_stage
from rlhf_dist.stages.places import placed
from rlhf_dist.stages.stage_checkpoints import Reached

UNITS = "units"
"""`KIND/units` counts what the other sums `KIND/...` of a loss are over."""


Settle = Callable[[LearnerGroup, Any, ExampleSet], Loss]
"""Of the group that holds `model`, the handle of a table and the units of a step or an evaluation, their loss."""


@dataclass(frozen=True)
class Objective:
    """What a stage learns, from what."""

    train: ExampleSet
    held_out: ExampleSet
    loss: Loss
    training: Training
    settle: Settle | None = None
    """Where a loss needs to know something of all of a step's units together, what finds it out."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.training.epochs * max(1, len(self.train.units) // self.training.batch_size)


def check_fits(config: Job, models: Sequence[tuple[str, str]], encoder: Encoder, *examples: ExampleSet) -> None:
    """Refuse examples that a model or a micro-batch has no room for, and models that cannot do what is wanted of them.

    Args:
        config: the stage's.
        models: role and folder of each (`models.check_models`).
        encoder: of the first one's tokenizer.
        examples: all that will be learnt or looked at.

    Raises:
        ModelError: a model has another role, or too few positions or rows.
        ConfigError: micro-batches are too small.
    """
    longest = max(max(each.table.column("tokens").value_lengths().to_pylist()) for each in examples)
    together = max(max(each.lengths()) for each in examples)
    check_stage(config, models, encoder, longest, lower="max_tokens")
    if config.learner.micro_batch_tokens < together:
        raise ConfigError(
            f"learner.micro_batch_tokens is {config.learner.micro_batch_tokens}; expected at least {together}, the tokens of "
            "the longest demonstration, or of all answers of the longest judgement"
        )


def encoder_of(model: str) -> Encoder:
    """The tokenizer of a model's folder, with all that the folder says of ends.

    Raises:
        ModelError: the folder has no tokenizer, or it has no end.
    """
    tokenizer = load_tokenizer(model)
    return Encoder(tokenizer, ends_of(model, tokenizer))


def example_of(encoder: Encoder, examples: ExampleSet, title: str, *, shift: int = 1, mark: str = "learnt") -> str:
    """The first example of a set as people see it.

    Args:
        encoder: whose tokens they are.
        examples: at least one unit.
        title: what it is.
        shift: from a position whose output is wanted to the token that matters: 1 to the token that it predicts.
        mark: why that matters.
    """
    row = examples.units[0][0]
    tokens, selected = (examples.table.column(name)[row].as_py() for name in ("tokens", "selected"))
    return view(encoder, tokens, {position + shift for position in selected}, title=title, mark=mark)


class SharedLearner:
    """A pipeline's learner group: started when a stage asks for it, kept for the next, and started anew after a failure."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._group: LearnerGroup | None = None
        self._ends = ExitStack()

    @contextmanager
    def lent(self, config: Job, run_dir: Path) -> Iterator[LearnerGroup]:
        """The group inside the block; see `learner_of`."""
        try:
            if self._group is None:
                self._group = self._ends.enter_context(_started(config, run_dir))
            yield self._group
        except BaseException:
            self.close()  # whoever failed, ranks may wait for each other
            raise

    def close(self) -> None:
        """Stop the group, if there is one."""
        self._group = None
        self._ends.close()


@contextmanager
def learner_of(config: Job, run_dir: Path, shared: SharedLearner | None = None) -> Iterator[LearnerGroup]:
    """A stage's learner group inside the block, holding no model yet: one of its own, or that of several stages.

    Args:
        config: the stage's settings.
        run_dir: what every rank must be able to see.
        shared: a pipeline's, which outlives this stage; all its stages have the same settings of the learner.
    """
    own = shared or SharedLearner()
    try:
        with own.lent(config, run_dir) as group:
            yield group
    finally:
        if shared is None:
            own.close()


def ranks_of(config: Job) -> dict[str, float]:
    """What the stage's learner asks of a session."""
    ranks = config.learner.ranks
    return {"cpus": ranks, "gpus": ranks * config.cluster.gpu_share, "processes": ranks}


@contextmanager
def _started(config: Job, run_dir: Path) -> Iterator[LearnerGroup]:
    layout = lay_out_ranks(config.learner, config.cluster, gpus=has_gpus(), cores=cores_per_gpu())
    with placed(layout, run_dir, config.timeouts) as where:
        environment = where.torch(config.learner.threads)
        ranks = [where.options(place, environment) for place in layout.places]
        place = GroupPlace(config.learner, ranks, run_dir, where.watch, config.timeouts, config.cluster.interface)
        with closing(start_group(place)) as group:
            yield group


def train(
    learner: LearnerGroup,
    objective: Objective,
    folder: RunFolder,
    *,
    seed: int,
    begin: Reached,
    keep: Callable[[int, Mapping[str, float]], None],
    offset: int = 0,
) -> Mapping[str, float]:
    """Epochs over shuffled batches, evaluated after each; returns the last evaluation.

    Args:
        learner: the group that holds the stage's model as `model`.
        objective: what it learns.
        folder: where each step is recorded.
        seed: of the shuffling, and of what a step draws.
        begin: steps that are done are left out.
        keep: called after each step with the number of those done, and the last evaluation.
        offset: number of the first step, for the later members of an ensemble.
    """
    import ray

    def loss_of(table: Any, units: ExampleSet) -> Loss:
        return objective.settle(learner, table, units) if objective.settle else objective.loss

    stored, held_out = ray.put(objective.train.table), ray.put(objective.held_out.table)
    found = begin.found
    for step, (epoch, is_last, chosen) in enumerate(_batches(objective, seed), start=offset):
        if step < begin.step:
            continue
        began = time.perf_counter()
        draws = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        units = objective.train.selected(chosen)
        batch = batch_of(stored, units, draws=draws)
        facts = per_kind(learner.train_step("model", batch, loss_of(stored, units)))
        seconds = time.perf_counter() - began
        metrics = {f"train/{key}": value for key, value in facts.items()} | {"train/epoch": epoch}
        speed = {"timing_s/step": seconds, "perf/throughput": sum(batch.lengths) / seconds}
        if is_last:
            asked = batch_of(held_out, objective.held_out)
            loss = loss_of(held_out, objective.held_out)
            found = per_kind(learner.train_step("model", asked, loss, learn=False))
            metrics |= {f"eval/{key}": value for key, value in found.items()}
        folder.record(step, metrics | speed)
        keep(step + 1, found)
        folder.console.advance(f"loss {facts['loss']:.3f}" if "loss" in facts else "step left out")
    return found


def _batches(objective: Objective, seed: int) -> Iterator[tuple[float, bool, list[int]]]:
    """Of each step how far in which epoch it is, whether it is the epoch's last, and its units."""
    for epoch in range(objective.training.epochs):
        batches = shuffled(objective.train.strata, objective.training.batch_size, seed=seed, epoch=epoch)
        for number, chosen in enumerate(batches):
            yield epoch + number / len(batches), number == len(batches) - 1, chosen


def shuffled(strata: Sequence[Hashable], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Units of each batch of an epoch; a last, incomplete batch is left out unless it is the only one.

    The order is random within each stratum and mixes the strata evenly, so that every batch has about the same share of each:
    rare kinds of feedback have large weights, and batches with many or none of them would pull to and fro.

    Args:
        strata: of each unit, e.g. its kind of feedback.
        batch_size: units of a batch.
        seed: of the order.
        epoch: number of the pass; each has an order of its own.
    """
    draws = np.random.default_rng([seed, epoch])
    members: dict[Hashable, list[int]] = defaultdict(list)
    for unit, stratum in enumerate(strata):
        members[stratum].append(unit)
    places: dict[int, float] = {}
    for units in members.values():
        for place, unit in enumerate(draws.permutation(units).tolist()):
            places[unit] = (place + draws.random()) / len(units)
    order = sorted(places, key=lambda unit: places[unit])
    whole = len(order) // batch_size * batch_size or len(order)
    return [order[start : start + batch_size] for start in range(0, whole, batch_size)]


def batch_of(stored: Any, chosen: ExampleSet, *, draws: int = 0) -> SupervisedBatch:
    """Units whose table lies in shared memory, as the learner takes them; `draws` is the seed of what their step draws."""
    count = sum(chosen.weights)
    return SupervisedBatch(stored, chosen.units, chosen.lengths(), count=count, draws=draws, where=chosen.where)


def per_kind(facts: Mapping[str, float]) -> dict[str, float]:
    """Means over their own units of what a mixed loss sums: `KIND/x` over `KIND/units`; kinds without units are left out."""
    counts = {key.removesuffix(f"/{UNITS}"): value for key, value in facts.items() if key.endswith(f"/{UNITS}")}
    means = {}
    for key, value in facts.items():
        kind = key.partition("/")[0]
        if kind not in counts:
            means[key] = value
        elif counts[kind] and not key.endswith(f"/{UNITS}"):
            means[key] = value / counts[kind]
    return means


def predictions(learner: LearnerGroup, examples: ExampleSet) -> np.ndarray[Any, Any]:
    """What the model says of every example of a table, [examples, heads], in the table's order."""
    import ray

    found = learner.predict("model", batch_of(ray.put(examples.table), examples))
    return np.array([found[number] for number in range(examples.table.num_rows)])
