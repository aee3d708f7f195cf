"""One data-parallel process of the learner group: it joins the others, holds the models, and trains on what it is told."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.cluster import rendezvous
from rlhf_dist.cluster.pulse import Beat
from rlhf_dist.cluster.threads import device_of_this_process
from rlhf_dist.config import Learner, Timeouts
from rlhf_dist.config.sections import Transport
from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.errors import RunError
from rlhf_dist.learner import joining
from rlhf_dist.learner.adapters import is_adapter, save_adapter
from rlhf_dist.learner.example_batch import ExampleBatch, read_examples
from rlhf_dist.learner.finite import NotFinite, check_tensors, found_in
from rlhf_dist.learner.freeing import let_go
from rlhf_dist.learner.frozen_model import FrozenModel, FrozenSpec
from rlhf_dist.learner.holding import Holding
from rlhf_dist.learner.imitation import Imitation, imitate
from rlhf_dist.learner.model_spec import Loaded, ModelSpec
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.policy_update import Models, Updated, update
from rlhf_dist.learner.publication import Publication
from rlhf_dist.learner.published import Whole, collected, published
from rlhf_dist.learner.recorder import Ranks
from rlhf_dist.learner.rows import read_rows, to_experience
from rlhf_dist.learner.saving import ModelFiles
from rlhf_dist.learner.shards import Shard
from rlhf_dist.learner.snapshot import Cost
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.learner.writing import GROUPS, Writer
from rlhf_dist.models import PolicyModel, ValueModel, at_temperature, pack
from rlhf_dist.models.cut import Cut
from rlhf_dist.models.proof import prove_cut
from rlhf_dist.models.wrapped import RowLayout
from rlhf_dist.store.lent import Lent
from rlhf_dist.store.reader import blocks_of
from rlhf_dist.store.weights import Sent, decode_bucket, encode_bucket
from rlhf_dist.telemetry import logs, tracing

log = logging.getLogger(__name__)

Loss = Callable[[TrainedModel, ExampleBatch], tuple[torch.Tensor, dict[str, float]]]
"""A stage's loss on one micro-batch: a sum over its units, and sums of further metrics."""


class LearnerRank:
    """A Ray actor; one per rank. Its calls are collective: the group makes them on all ranks at once."""

    also = GROUPS
    """Ray's concurrency groups beside that of its pulse."""

    def __init__(self, rank: int, ranks: int, settings: Learner) -> None:
        """Prepare the process; nothing is loaded before `join`."""
        self.rank, self.ranks, self.settings = rank, ranks, settings
        self.models: dict[str, TrainedModel] = {}
        self.frozen: dict[str, FrozenModel] = {}
        """What is asked and not trained."""
        self._door: rendezvous.Door | None = None
        self._publication: Publication | None = None
        self._writer = Writer()
        self._sharing: Cut | None = None
        """With which ranks it shares rows."""
        self._holding: Holding | None = None
        self._lends = False
        self._snapshot = Cost(0.0, 0)
        """When it began, and its size."""
        device_of_this_process(settings.threads)

    def __repr__(self) -> str:
        """How Ray's dashboard and logs call it."""
        return f"LearnerRank({self.rank} of {self.ranks})"

    def pulse(self) -> Beat:
        """A sign of life; how long an update may take, its own deadline says."""
        return Beat(0, "")

    def address(self) -> str:
        """This node's, as Ray knows it."""
        import ray

        return str(ray.util.get_node_ip_address())

    def open(self, host: str | None) -> tuple[str, int]:
        """Listen on a free port of an address, or of this node's, until `join`; returns both."""
        self._door = rendezvous.Door(host or self.address())
        return self._door.address

    def unreachable(self, doors: Sequence[tuple[str, int]], run_dir: Path) -> list[str]:
        """What would keep this rank from working with the others: doors that it cannot reach, a folder that it cannot see."""
        found = [problem for door in doors if (problem := rendezvous.knock(door))]
        if not run_dir.is_dir():
            found.append(f"{run_dir} is not there: the run folder must be on storage that every node sees")
        return found

    def shut(self) -> None:
        """Let nobody in any more who is not of the group; all ranks must have, before any joins."""
        assert self._door is not None, "`open` comes first"
        self._door.shut()

    def join(self, host: str, port: int, timeouts: Timeouts, interface: str | None) -> None:
        """Meet the other ranks. Waits for all of them, as long as a start may take."""
        assert self._door is not None, "`open` comes first"
        joining.join(self._door, host, port, rank=self.rank, ranks=self.ranks, timeouts=timeouts, interface=interface)

    def load(self, specs: dict[str, ModelSpec], frozen: dict[str, FrozenSpec], log_dir: str, seed: int) -> Loaded:
        """Load and shard models by name, to train or only to ask, in place of those that are here."""
        logs.to_file(log_dir, f"learner-{self.rank}")
        self._publication = self._holding = None
        let_go(self.models)
        let_go(self.frozen)
        torch.manual_seed(seed)
        for name, spec in specs.items():
            self.models[name] = self._load(spec)
            if spec.state:
                self.models[name].load_state(Path(spec.state))
        for name, asked in frozen.items():
            self.renew(name, asked)
        first = next(iter(self.models.values()))
        layouts = {model.module.layout for model in self.models.values()}
        layouts |= {model.layout for model in self.frozen.values()}
        return Loaded(sum(int(np.prod(shape)) for _, shape in first.shapes()), max(layouts, key=[*RowLayout].index))

    @property
    def _held(self) -> list[TrainedModel | FrozenModel]:
        """All models."""
        return [*self.models.values(), *self.frozen.values()]

    def renew(self, name: str, spec: FrozenSpec) -> None:
        """Load a model that is only asked, in place of one that has its name."""
        old = {name: self.frozen.pop(name)} if name in self.frozen else {}
        let_go(old)
        model = FrozenModel(spec, self.settings)
        self._share_rows(model.engine.module, model.engine)
        self.frozen[name] = model

    def _load(self, spec: ModelSpec) -> TrainedModel:
        module = spec.build(self.settings)
        model = TrainedModel(module, spec.optimizer, self.settings, total_steps=spec.total_steps, lora=spec.lora)
        self._share_rows(model.module, model)
        return model

    def _share_rows(self, module: PolicyModel | ValueModel, forward: Any) -> None:
        """Cut the model's rows over ranks, if settings say so; all ranks must call.

        Raises:
            ModelError: they cannot be cut.
        """
        parts = self.settings.sequence_parallel
        if parts == 1:
            return
        if self._sharing is None or self._sharing.parts != parts:
            groups = [torch.distributed.new_group(range(first, first + parts)) for first in range(0, self.ranks, parts)]
            self._sharing = Cut(groups[self.rank // parts], parts, self.rank % parts)
        prove_cut(module, self._sharing, forward, device=forward.device)

    @property
    def _speaks(self) -> bool:
        """Whether this rank tells what all that share its rows have found."""
        return self.rank % self.settings.sequence_parallel == 0

    @property
    def _group(self) -> Ranks:
        return Ranks.over_group(self.ranks, next(iter(self.models.values())).device, speaks=self._speaks)

    def update(self, shard: Shard, objective: RLObjective, now: Now, imitation: Imitation | None) -> Updated:
        """One update on this rank's part of a batch.

        Args:
            shard: its rows.
            objective: what is estimated and minimised, and in which steps.
            now: what belongs to this update.
            imitation: demonstrations of each optimiser step, for PPO-ptx.
        """
        import ray

        refs = blocks_of(shard.views)
        data = read_rows(dict(zip(refs, ray.get(refs), strict=True)), shard, objective, now)
        models = Models(self.models["policy"], self.models.get("critic"), frozen=self.frozen)
        models.stop_on_bad = self.settings.on_bad_numbers == "stop"
        if imitation is not None:
            table, coefficient = ray.get(imitation.table)[0], objective.rl.ptx_coef
            models.also = partial(imitate, models.policy, imitation, table, coefficient=coefficient, ranks=self.ranks)
        device = models.policy.device
        experience = [[to_experience(data, micro, device) for micro in mini] for mini in shard.mini_batches]
        logs.CONTEXT.update(iteration=now.iteration, version=now.iteration)
        with tracing.span("update", iteration=now.iteration, rows=len(shard.views)):
            updated = update(models, experience, objective, now, ranks=self._group)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # an engine that shares the GPU wakes next
        log.info("updated", extra={"rows": len(shard.views), "pg_loss": updated.facts.get("actor/pg_loss")})
        return updated._replace(found=updated.found if self._speaks else [])

    def train_step(
        self,
        name: str,
        examples: pa.RecordBatch,
        micros: list[MicroBatch],
        loss: Loss,
        denominator: float,
        draws: int | None,
    ) -> Updated:
        """One optimiser step of a supervised stage, or the same without learning.

        Where a loss is not finite, on any rank, the step is left out.

        Args:
            name: which model.
            examples: all examples of the stage, `data.examples.EXAMPLES`, in shared memory.
            micros: this rank's micro-batches of example numbers.
            loss: the stage's loss.
            denominator: weight of all units over all ranks, by which the summed loss is divided.
            draws: seed of what is drawn in this step, as dropout is; None: an evaluation, by which nothing is learnt.
        """
        model, learn = self.models[name], draws is not None
        model.module.train(learn)
        if draws is not None:
            torch.manual_seed(draws + self.rank)  # so a resumed stage draws what it would have drawn
        sums: dict[str, float] = {"loss": 0.0}
        found: list[NotFinite] = []
        for micro in micros:
            batch = read_examples(examples, micro).to(model.device)
            with torch.set_grad_enabled(learn):
                total, extra = loss(model, batch)
            if learn:
                model.backward(total * (self.ranks / denominator))
            told = {"loss": float(total.detach()), **extra}
            if not math.isfinite(told["loss"]):
                found.append(found_in(model.steps + 1, f"the loss is {told['loss']}", batch.odd_ones()))
            for key, value in told.items():
                sums[key] = sums.get(key, 0.0) + value
        stepped = model.step() if learn else {}
        if stepped is None:
            own = [example for micro in micros for row in micro for example in row]
            found.append(found_in(model.steps, "the norm of the gradient is not finite", own, vague=True))
        keys = sorted(sums)
        totals = self._group.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64))
        facts = {key: float(value) / denominator for key, value in zip(keys, totals, strict=True)}
        return Updated(facts | (stepped or {}), found if self._speaks else [])

    @torch.no_grad()
    def predict(self, name: str, examples: pa.RecordBatch, micros: list[MicroBatch]) -> dict[int, list[float]]:
        """What a model says of examples, by example number.

        Returns:
            of a policy [mean log-prob of the selected tokens]; of a value model, per head, its mean over the selected positions.
        """
        model = self.models[name]
        model.module.eval()
        found: dict[int, list[float]] = {}
        for micro in micros:
            batch = read_examples(examples, micro).to(model.device)
            is_policy = isinstance(model.module, PolicyModel)
            outputs = model(batch.packed)[0][:, None] if is_policy else model(batch.packed, all_heads=True)
            order = [index for row in micro for index in row]
            found |= dict(zip(order, batch.means(outputs).tolist(), strict=True))
        return found

    def plan_weights(self, name: str, bucket_bytes: int, wire_dtype: str, transport: Transport = "store") -> bool:
        """Cut a model into buckets for publication; returns whether there are versions of what adapters change, alone.

        By other transports than `store` they stay on this rank's device, where engines take them.
        """
        dtype = getattr(torch, wire_dtype)
        self._publication = Publication.plan(self.models[name], dtype=dtype, bucket_bytes=bucket_bytes)
        self._holding = Holding(self.models[name].device) if transport == "cuda_ipc" else None
        self._lends = transport == "sharded_rdt"
        return bool(self._publication.adapted)

    def weight_buckets(
        self, partial: bool = False, base: Sequence[Any] | None = None
    ) -> Iterator[pa.Table | Lent | Sent]:
        """This rank's buckets of the published model, and a report of what was in them; see `Publication.tables`.

        Args:
            partial: only what adapters change.
            base: references of this rank's buckets of an older version, on which these are to be deltas.
        """
        import ray

        assert self._publication is not None, "`plan_weights` comes first"
        if self._holding is not None:
            yield from self._publication.held(self._holding, tells=self.rank == 0, partial=partial)
            return
        if self._lends:
            yield from self._publication.lent(self.rank, self.ranks, partial=partial)
            return
        older = None if base is None else map(ray.get, base)
        yield from self._publication.tables(self.rank, self.ranks, partial=partial, base=older)

    @torch.no_grad()
    def probe(self, tokens: Sequence[int], temperature: float = 1.0) -> list[float]:
        """The policy's log-probs of tokens[1:], in nats, at a temperature, from its training weights."""
        model = self.models["policy"]
        packed = pack([np.asarray(tokens)], [range(len(tokens) - 1)], [[0]]).to(model.device)
        with at_temperature(model.module, temperature):
            log_probs: list[float] = model(packed)[0].tolist()
        return log_probs

    def save(self, name: str, folder: Path) -> None:
        """Copy this rank's part of a model in Hugging Face layout, which it then writes in the background (`written`)."""
        model, first, dtype = self.models[name], self.rank == 0, getattr(torch, self.settings.dtype)
        with tracing.span("save"):
            own = [key for key, _ in model.shapes() if is_adapter(key) or model.is_trained_whole(key)]
            adapters = collected(Whole(model), own, dtype=dtype, keep=first)
            files = ModelFiles(model.hugging_face, published(model), dtype)
            files.write(folder, self._writer, rank=self.rank, ranks=self.ranks)
            if first and model.lora is not None:
                check_tensors([*adapters.items()], f"saving the adapters of {name}")
                save_adapter(model.hugging_face, adapters, model.lora, folder / "adapter")

    def save_state(self, name: str, folder: Path) -> None:
        """Copy what this rank needs to go on training the model, its share of the optimiser's state; then as in `save`."""
        own = folder / f"rank-{self.rank}"
        with tracing.span("save state"):
            self.models[name].save_state(own, share=(self.rank, self.ranks), write=self._writer.write)

    def written(self, folder: Path) -> dict[str, str]:
        """Wait until all that this rank writes below a folder is on the disk; returns digests by path.

        It has a thread of its own (`GROUPS`), so that the rank trains meanwhile.

        Raises:
            StorageError: the disk takes no more.
        """
        return self._writer.written(folder)

    def snapshot(self) -> pa.Table:
        """All that changes while this rank trains its models."""
        self._snapshot = Cost(time.perf_counter(), 0)
        with tracing.span("snapshot"):
            states = {name: model.state() for name, model in self.models.items()}
            table = encode_bucket(
                (f"{name}/{key}", value) for name, state in states.items() for key, value in state.items()
            )
        self._snapshot = self._snapshot._replace(num_bytes=table.nbytes)
        return table

    def state_bytes(self) -> int:
        """Size of a snapshot, made or not."""
        return sum(value.nbytes for model in self.models.values() for value in model.state().values())

    def snapshot_cost(self) -> Cost:
        """What the last one has cost until now: asked right after it, most is Ray's copy into shared memory.

        Raises:
            RunError: it was not made.
        """
        if not self._snapshot.num_bytes:
            raise RunError(f"learner-{self.rank}: the snapshot was not made")
        return self._snapshot._replace(seconds=time.perf_counter() - self._snapshot.seconds)

    def restore(self, table: pa.Table) -> None:
        """Be as `snapshot` told, with the same models in the same layout; all ranks must call."""
        states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.models}
        for key, value in decode_bucket(table):
            name, _, rest = key.partition("/")
            states[name][rest] = value
        for name, model in self.models.items():
            model.take_state(states[name])

    def offload(self) -> None:
        """Move what only an update needs to the host: an engine that shares the device wakes next."""
        with tracing.span("states away"):
            away = sum(model.states.leave() for model in self._held)
        log.info("what only an update needs is away", extra={"bytes": away})

    def reload(self) -> None:
        """Take it back."""
        with tracing.span("states back"):
            for model in self._held:
                model.states.come_back()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def peak_memory(self) -> int:
        """Peak memory of this process: on the GPU where there is one, else resident."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
