"""The process that owns experience and weights: `ExperienceIndex` and `WeightIndex` behind waiting calls.

Others hand it Arrow batches, or it asks for them; either way this process owns the objects, so what a worker has
finished survives the worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import reduce
from itertools import chain, zip_longest
from typing import Any, TypeVar

import pyarrow as pa

from rlhf_dist.cluster.object_store import spilled_bytes
from rlhf_dist.cluster.pulse import Beat
from rlhf_dist.errors import NumbersError, StoreError
from rlhf_dist.records import Failure, PromptTask, RowKey
from rlhf_dist.store.experience import ExperienceIndex, RowView
from rlhf_dist.store.finite import check_finite
from rlhf_dist.store.schema import ROLLOUT_WRITER, keys_of, lengths_of, written_by
from rlhf_dist.store.weights import Manifest, Moved, Probe, Sent, WeightIndex
from rlhf_dist.telemetry import logs, tracing
from rlhf_dist.telemetry.ray_metrics import StoreMetrics

T = TypeVar("T")

log = logging.getLogger(__name__)

SHOW_EVERY_S = 1.0


class Store:
    """A Ray actor with coroutine methods; every wait ends after the seconds that its caller grants."""

    def __init__(self, experience: ExperienceIndex, *, log_dir: str | None = None) -> None:
        """Begin with an empty index of experience, and no weights.

        Args:
            experience: the index, with its bounds.
            log_dir: where the store's log file goes; None: nowhere.
        """
        if log_dir is not None:
            logs.to_file(log_dir, "store")
        self._experience = experience
        self._weights = WeightIndex()
        self._changed = asyncio.Condition()
        self._facts: dict[str, Counter[str]] = {}
        self._bytes: Counter[int] = Counter()
        """Bytes of experience by iteration."""
        self._told: dict[str, Any] = {}
        self._spilled: int | None = None
        """Bytes that the cluster had written to disk when that was last asked, other runs' among them."""
        self._showing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """How Ray's dashboard and logs call it."""
        return "Store"

    async def pulse(self) -> Beat:
        """A sign of life of the loop that answers all calls."""
        return Beat(0, "")

    async def submit(self, tasks: Sequence[PromptTask], further: bool = False) -> None:
        """Queue prompts for generation; see `ExperienceIndex.submit`."""
        self._experience.submit(tasks, further=further)
        if tasks:
            logs.CONTEXT["iteration"] = tasks[0].iteration
        await self._notify()

    async def next_prompts(self, worker: str, limit: int, wait_s: float) -> list[PromptTask]:
        """Lease prompts to a rollout worker. Unblocked by: submission, or a new version; empty after `wait_s`."""
        return await self._wait(lambda: self._experience.lease_prompts(worker, limit), wait_s) or []

    async def append(self, worker: str, batch: pa.RecordBatch) -> None:
        """Accept finished samples.

        Raises:
            StoreError: the columns are not the rollout's, or a row is not leased to this worker.
            NumbersError: a log-prob or reward is not finite; names the sample.
        """
        _check_columns(batch, ROLLOUT_WRITER)
        import ray

        keys = keys_of(batch)
        check_finite(batch, worker, keys)
        self._experience.append(worker, ray.put(batch), keys, lengths_of(batch))
        self._bytes[keys[0].iteration] += batch.nbytes
        await self._notify()

    async def next_rows(self, worker: str, scorer: str, patient: bool, wait_s: float) -> list[RowView]:
        """Lease a chunk of rows that lack a scorer's column. Unblocked by: its last sample; empty after `wait_s`.

        Args:
            worker: who asks.
            scorer: whose column.
            patient: as long as rows are on their way, wait; see `ExperienceIndex.lease_rows`.
            wait_s: how long to wait.
        """
        return await self._wait(lambda: self._experience.lease_rows(worker, scorer, patient=patient), wait_s) or []

    async def add_column(
        self,
        worker: str,
        scorer: str,
        keys: Sequence[RowKey],
        batch: pa.RecordBatch,
        failed: Mapping[RowKey, Failure] | None = None,
    ) -> None:
        """Accept a scorer's columns for rows leased to it; `failed` rows have none, and are not trained on.

        Raises:
            StoreError: wrong columns, or rows that are not leased to this worker.
            RewardError: more rows failed than may.
            NumbersError: a score or log-prob is not finite; names the sample.
        """
        _check_columns(batch, scorer)
        sound = [number for number, key in enumerate(keys) if RowKey(*key) not in (failed or {})]
        check_finite(batch.take(pa.array(sound, pa.int64())), worker, [keys[number] for number in sound])
        import ray

        self._experience.add_column(worker, scorer, ray.put(batch), [RowKey(*key) for key in keys], failed)
        self._bytes[keys[0][0]] += batch.nbytes
        await self._notify()

    async def take(self, iteration: int, wait_s: float, fewest: int = 1) -> list[RowView] | None:
        """The scored batch, in canonical order; None after `wait_s`. Unblocked by: the last scorer's last row.

        Args:
            iteration: whose batch.
            wait_s: how long to wait.
            fewest: samples of a prompt that are of use together, see `ExperienceIndex.take`.

        Raises:
            RewardError: every row of it failed.
        """
        index = self._experience
        return await self._wait(lambda: index.take(iteration, fewest) if index.complete(iteration) else None, wait_s)

    async def failures(self, iteration: int) -> dict[RowKey, Failure]:
        """Rows of an iteration that have no score, and why, in canonical order; until `consume`."""
        return self._experience.failures(iteration)

    async def consume(self, iteration: int) -> None:
        """Free a batch that was trained on."""
        self._experience.consume(iteration)
        del self._bytes[iteration]
        await self._notify()

    async def release(self, worker: str) -> None:
        """Return a lost worker's leases to the pool."""
        self._experience.release(worker)
        log.warning("leases of %s are back in the pool", worker, extra=self._experience.status())
        await self._notify()

    async def publish(
        self,
        version: int,
        ranks: Sequence[Any],
        probe: Probe | None,
        partial: bool = False,
        delta_every: int = 0,
    ) -> dict[str, float]:
        """Fetch a version's buckets from the learner ranks, and make it visible when all are there.

        Bucket b comes from rank b modulo their number. The tables stay in shared memory and are not opened here.

        Args:
            version: its number.
            ranks: the learner's.
            probe: for engines to compare themselves with.
            partial: ask for what adapters change, alone.
            delta_every: ask for what changed since the last whole version, unless that is so many versions ago.

        Returns:
            Metrics of the version.

        Raises:
            NumbersError: a weight is not finite; names tensors. The version is not visible then.
        """
        if self._spilled is None:
            await self._newly_spilled()
        base = self._weights.base_of(version, partial=partial, every=delta_every)
        streams = [
            rank.weight_buckets.options(num_returns="streaming").remote(
                partial, base and base.buckets[number :: len(ranks)]
            )
            for number, rank in enumerate(ranks)
        ]
        with tracing.span("publish weights", version=version):
            received = await asyncio.gather(*map(_received, streams))
        sent = [each for _, each in received]
        tables = _in_turn([tables for tables, _ in received])
        names = [name for bucket in _in_turn([each.names for each in sent]) for name in bucket]
        odd = [name for each in sent for name in each.odd]
        num_bytes, moved = (
            sum(each.num_bytes for each in sent),
            reduce(Moved.plus, (each.moved for each in sent), Moved()),
        )
        if odd:
            raise NumbersError(
                f"weight version {version}: {len(odd)} tensors are not finite, e.g. {odd[0]}; expected finite weights. "
                "It was not published"
            )
        self._weights.add(Manifest(version, tuple(names), num_bytes, tuple(tables), probe, partial, base))
        logs.CONTEXT["version"] = version
        kind = "partial" if partial else "complete"
        told = {"bytes": num_bytes, "buckets": len(tables), "kind": kind, "base": base.version if base else None}
        log.info("published weights", extra=told)
        self._experience.publish(version)
        await self._notify()
        facts = {"weights/bytes": float(num_bytes), "weights/spilled_bytes": await self._newly_spilled()}
        return facts if moved.kept is None else {**facts, "weights/lora_kept": moved.kept}

    async def _newly_spilled(self) -> float:
        """Bytes that the cluster has written to disk since this was asked before."""
        found = await asyncio.to_thread(spilled_bytes)
        if found is None:
            return 0.0
        before, self._spilled = self._spilled, found
        return float(found - (found if before is None else before))

    async def newest_weights(self, has_one: bool) -> list[Manifest]:
        """Manifests that make an engine one of the newest version; see `WeightIndex.to_load`."""
        return self._weights.to_load(has_one=has_one)

    async def newest_version(self) -> int:
        """The newest version's number, -1 before the first."""
        return self._weights.newest.version if self._weights.newest else -1

    async def report(self, worker: str, facts: dict[str, float]) -> None:
        """Take what a rollout worker measured, so that nobody has to wait for a worker to ask it."""
        self._facts.setdefault(worker, Counter()).update(facts)

    async def take_facts(self) -> dict[str, dict[str, float]]:
        """What rollout workers measured since the last call, by worker, added up."""
        facts, self._facts = self._facts, {}
        return {worker: dict(counted) for worker, counted in facts.items()}

    async def status(self) -> dict[str, int]:
        """Counts for logs, error messages and `rlhf-dist status`."""
        return self._experience.status()

    async def note(self, status: dict[str, Any]) -> None:
        """Keep the controller's status for those who do not see the run folder."""
        self._told = status

    async def overview(self) -> dict[str, Any]:
        """The controller's status, with the counts of now."""
        return {**self._told, "rows": await self.status()}

    async def sizes(self) -> dict[str, int]:
        """Bytes held: experience, and the weight versions that are kept."""
        return {"experience": sum(self._bytes.values()), "weights": self._weights.num_bytes()}

    async def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    async def _show_forever(self) -> None:
        """Keep the metrics of this process up to date, at a pace that costs nothing."""
        metrics = StoreMetrics()
        while True:
            metrics.show(await self.status(), await self.sizes())
            await asyncio.sleep(SHOW_EVERY_S)

    async def _notify(self) -> None:
        if self._showing is None:
            self._showing = asyncio.create_task(self._show_forever())
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, attempt: Callable[[], T | None], wait_s: float) -> T | None:
        """Try after every change until something comes of it."""
        deadline = asyncio.get_running_loop().time() + wait_s
        async with self._changed:
            while not (result := attempt()):
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return attempt() or None
        return result


async def _received(stream: AsyncIterator[Any]) -> tuple[list[Any], Sent]:
    """References of the tables that a rank sends, and its report, the last."""
    refs = [ref async for ref in stream]
    return refs[:-1], await refs[-1]


def _in_turn(dealt: Sequence[Sequence[T]]) -> list[T]:
    """What was dealt to several in turn, in its first order."""
    rounds = chain.from_iterable(zip_longest(*dealt))
    return [each for each in rounds if each is not None]


def _check_columns(batch: pa.RecordBatch, writer: str) -> None:
    expected = written_by(writer)
    if not batch.schema.equals(expected):
        raise StoreError(f"{writer} wrote columns {batch.schema.names}; expected {expected.names}")
