"""How a model's versions leave the learner: cut into buckets, which the ranks send in rounds, all of them at once.

Under ZeRO-3 every rank takes part in gathering every bucket. So a round gathers as many buckets as there are ranks, each of
which keeps a copy of one; then they hash and send their copies side by side, while the next ones come into host memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import torch

from rlhf_dist.cluster.threads import helpers
from rlhf_dist.learner.finite import OddPieces, odd_tensors
from rlhf_dist.learner.holding import Holding
from rlhf_dist.learner.published import PublishedWeights, published
from rlhf_dist.learner.staging import Staged, Staging
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models.file_names import Unit, in_file, units_of
from rlhf_dist.store.deltas import encode_delta
from rlhf_dist.store.held import held_table, open_held
from rlhf_dist.store.lent import Lent, lend
from rlhf_dist.store.weights import Moved, Sent, cells_of, encode_bucket, plan_buckets
from rlhf_dist.telemetry import tracing


@dataclass
class Publication:
    """How a model's versions go to the store: under its file's names, in which buckets, in which dtype."""

    weights: PublishedWeights
    model: Any
    """The Hugging Face model, which knows its file's names."""
    dtype: torch.dtype
    buckets: list[list[Unit]]
    """Of a complete version."""
    adapted: list[list[Unit]]
    """Of one that has what adapters change, alone; none without adapters."""
    lasting: bool
    """Whether weights stay whole after their bucket: without ZeRO-3."""
    staging: Staging
    threads: ThreadPoolExecutor = field(default_factory=lambda: helpers(torch.get_num_threads()))
    """Read the tensors of a bucket; as many as the process computes with."""
    ahead: ThreadPoolExecutor = field(default_factory=lambda: helpers(1))
    """Makes the next table, while the one before it is copied into shared memory."""

    @classmethod
    def plan(cls, model: TrainedModel, *, dtype: torch.dtype, bucket_bytes: int) -> Publication:
        """Cut a model into buckets."""
        weights = published(model)
        units = units_of(model.hugging_face, weights.shapes())
        changed = _with_siblings([name for name, _ in weights.shapes()], weights.adapted)
        adapted = [unit for unit in units if changed.intersection(unit.own)]

        def cut(units: list[Unit]) -> list[list[Unit]]:
            sizes = [(str(number), unit.numel * dtype.itemsize) for number, unit in enumerate(units)]
            return [
                [units[int(number)] for number in bucket] for bucket in plan_buckets(sizes, bucket_bytes=bucket_bytes)
            ]

        lasting, staging = model.zero_stage < 3, Staging(model.device)
        return cls(weights, model.hugging_face, dtype, cut(units), cut(adapted), lasting, staging)

    def tables(
        self, rank: int, ranks: int, *, partial: bool = False, base: Iterator[pa.Table] | None = None
    ) -> Iterator[pa.Table | Sent]:
        """The buckets of one rank, in order, and in the end what was in them; all ranks must iterate to the end.

        Rank r has the buckets r, r + ranks and so on. A table is good until the next one is asked for: then its memory is used
        again.

        Args:
            rank: whose.
            ranks: their number.
            partial: only what adapters change.
            base: this rank's buckets of an older version, on which these are to be deltas.
        """
        buckets = self.adapted if partial else self.buckets
        sent = Sent()
        ready: Future[pa.Table] | None = None
        for first in range(0, len(buckets), ranks):
            kept = self._round(buckets[first : first + ranks], rank)
            coming = None if kept is None else self.ahead.submit(self._table, kept, sent, base)
            if ready is not None:
                yield ready.result()
            ready = coming
        if ready is not None:
            yield ready.result()
        yield sent

    def held(self, holding: Holding, *, tells: bool, partial: bool = False) -> Iterator[pa.Table | Sent]:
        """Where this rank holds a version's buckets, all of them, and in the end what is in them; all ranks must iterate.

        Args:
            holding: where they go.
            tells: whether this rank is the one that tells of them.
            partial: only what adapters change.
        """
        sent = Sent()
        holding.begin(partial=partial)
        for bucket in self.adapted if partial else self.buckets:
            moved: list[Moved] = []
            names = [name for unit in bucket for name in unit.own]
            with self.weights.bucket(names, self.dtype, moved=moved) as tensors:
                rows = holding.keep(in_file(self.model, dict(tensors)), partial=partial)
            if tells:
                sent.names.append([row.name for row in rows])
                sent.num_bytes += sum(row.size for row in rows)
                sent.odd += odd_tensors(open_held(rows))
                sent.moved = reduce(Moved.plus, moved, sent.moved)
            yield held_table(rows)
        yield sent

    def lent(self, rank: int, ranks: int, *, partial: bool = False) -> Iterator[Lent | Sent]:
        """The buckets of one rank, dealt as in `tables`, which stay on its device; all ranks must iterate to the end."""
        sent = Sent()
        for number, bucket in enumerate(self.adapted if partial else self.buckets):
            moved: list[Moved] = []
            names = [name for unit in bucket for name in unit.own]
            with self.weights.bucket(names, self.dtype, moved=moved) as tensors:
                if number % ranks != rank:
                    continue
                own = in_file(self.model, dict(tensors))
                sent.odd += odd_tensors(own.items())
                found = lend(own)
            sent.names.append([each.name for each in found.tensors])
            sent.num_bytes += sum(each.size for each in found.tensors)
            sent.moved = reduce(Moved.plus, moved, sent.moved)
            yield found
        yield sent

    def _round(self, buckets: Sequence[list[Unit]], own: int) -> tuple[Staged, list[Moved]] | None:
        """Gather some buckets, one after the other; one of them begins to come into this rank's host memory."""
        found = None
        for number, bucket in enumerate(buckets):
            moved: list[Moved] = []
            names = [name for unit in bucket for name in unit.own]
            with self.weights.bucket(names, self.dtype, moved=moved) as tensors:
                if number == own:
                    found = self.staging.take(in_file(self.model, dict(tensors)), lasting=self.lasting), moved
        return found

    def _table(self, kept: tuple[Staged, list[Moved]], sent: Sent, base: Iterator[pa.Table] | None) -> pa.Table:
        staged, moved = kept
        with tracing.span("weight bucket", number=len(sent.names)):
            tensors = staged()
            odd = OddPieces(tensors)
            if base is None:
                table = encode_bucket(tensors.items(), threads=self.threads, look=odd.look)
            else:
                table = encode_delta(next(base), tensors.items(), threads=self.threads, look=odd.look)
            sent.names.append([*tensors])
            sent.num_bytes += sum(row.num_bytes for row in cells_of(table))
            sent.odd += odd.names()
            sent.moved = reduce(Moved.plus, moved, sent.moved)
        return table


def _with_siblings(names: Iterable[str], adapted: Iterable[str]) -> set[str]:
    """Adapted weights with those of the same parent: engines hold q, k and v as one layer, and reload a layer only whole."""

    def parent(name: str) -> str:
        return name.rsplit(".", 2)[0]

    parents = {parent(name) for name in adapted}
    return {name for name in names if parent(name) in parents}
