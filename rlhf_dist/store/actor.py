"""The process that owns experience and weights: `ExperienceIndex` and `WeightIndex` behind waiting calls.

Others hand it Arrow batches, or it asks for them; either way this process owns the objects, so what a worker has
finished survives the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from rlhf_dist.errors import StoreError
from rlhf_dist.records import PromptTask, RowKey
from rlhf_dist.store.experience import ExperienceIndex, RowView
from rlhf_dist.store.schema import keys_of, lengths_of, written_by
from rlhf_dist.store.weights import Manifest, Probe, WeightIndex

T = TypeVar("T")


class Store:
    """A Ray actor with coroutine methods; every wait ends after the seconds that its caller grants."""

    def __init__(self, *, batch_rows: int, max_staleness: int, capacity_rows: int | None) -> None:
        """Make both indices, empty."""
        self._experience = ExperienceIndex(
            batch_rows=batch_rows, max_staleness=max_staleness, capacity_rows=capacity_rows
        )
        self._weights = WeightIndex()
        self._changed = asyncio.Condition()

    async def submit(self, tasks: Sequence[PromptTask]) -> None:
        """Queue prompts for generation."""
        self._experience.submit(tasks)
        await self._notify()

    async def next_prompts(self, worker: str, limit: int, wait_s: float) -> list[PromptTask]:
        """Lease prompts to a rollout worker. Unblocked by: submission, or a new version; empty after `wait_s`."""
        return await self._wait(lambda: self._experience.lease_prompts(worker, limit), wait_s) or []

    async def append(self, worker: str, batch: pa.RecordBatch) -> None:
        """Accept finished samples.

        Raises:
            StoreError: the columns are not the rollout's, or a row is not leased to this worker.
        """
        _check_columns(batch, "rollout")
        import ray

        self._experience.append(worker, ray.put(batch), keys_of(batch), lengths_of(batch))
        await self._notify()

    async def next_rows(self, worker: str, scorer: str, max_tokens: int, wait_s: float) -> list[RowView]:
        """Lease rows that lack a scorer's column. Unblocked by: finished samples; empty after `wait_s`."""
        return await self._wait(lambda: self._experience.lease_rows(worker, scorer, max_tokens), wait_s) or []

    async def add_column(self, worker: str, scorer: str, keys: Sequence[RowKey], batch: pa.RecordBatch) -> None:
        """Accept a scorer's columns for rows leased to it.

        Raises:
            StoreError: wrong columns, or rows that are not leased to this worker.
        """
        _check_columns(batch, scorer)
        import ray

        self._experience.add_column(worker, scorer, ray.put(batch), [RowKey(*key) for key in keys])
        await self._notify()

    async def take(self, iteration: int, wait_s: float) -> list[RowView] | None:
        """The whole scored batch, in canonical order; None after `wait_s`. Unblocked by: the last scorer's last row."""
        index = self._experience
        return await self._wait(lambda: index.take(iteration) if index.complete(iteration) else None, wait_s)

    async def consume(self, iteration: int) -> None:
        """Free a batch that was trained on."""
        self._experience.consume(iteration)
        await self._notify()

    async def release(self, worker: str) -> None:
        """Return a lost worker's leases to the pool."""
        self._experience.release(worker)
        await self._notify()

    async def publish(self, version: int, ranks: Sequence[Any], num_buckets: int, probe: Probe | None) -> int:
        """Fetch a version's buckets from the learner ranks, and make it visible when all are there.

        Every rank is asked for every bucket, because gathering a ZeRO-3 bucket needs them all; bucket b is returned by
        rank b modulo their number. The tables stay in shared memory and are not opened here.

        Returns:
            Bytes of the version.
        """
        tables, reports = [], []
        for bucket in range(num_buckets):
            for number, rank in enumerate(ranks):
                table, report = rank.weight_bucket.options(num_returns=2).remote(bucket)
                reports.append(report)
                if number == bucket % len(ranks):
                    tables.append(table)
        names: list[str] = []
        num_bytes = 0
        for report in await asyncio.gather(*reports):
            names += report["names"]
            num_bytes += report["bytes"]
        self._weights.add(Manifest(version, tuple(names), num_bytes, tuple(tables), probe))
        self._experience.publish(version)
        await self._notify()
        return num_bytes

    async def newest_weights(self) -> Manifest | None:
        """The newest version's manifest."""
        return self._weights.newest

    async def newest_version(self) -> int:
        """The newest version's number, -1 before the first."""
        return self._weights.newest.version if self._weights.newest else -1

    async def status(self) -> dict[str, int]:
        """Counts for logs and error messages."""
        return self._experience.status()

    async def _notify(self) -> None:
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


def _check_columns(batch: pa.RecordBatch, writer: str) -> None:
    expected = written_by(writer)
    if not batch.schema.equals(expected):
        raise StoreError(f"{writer} wrote columns {batch.schema.names}; expected {expected.names}")
