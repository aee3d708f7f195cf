"""The index of experience: which rows exist, which columns each has, who works on it, who has consumed it.

A row's way:  submitted -> leased to a rollout worker -> written -> scored (one lease per scorer) -> taken -> consumed
A lease goes back to the pool when its holder is released, so every row is consumed exactly once whoever dies.

A row whose scorer failed goes the same way, its cause kept, but it is not handed out when its batch is taken; neither are what is
left of a prompt's samples where an estimator needs more of them.

Rows are scored in chunks that are fixed when their prompts are submitted, since the last bits of what a model says of a row
depend on the rows that share its forward pass: neither who generates or scores, nor how many do, nor who is first changes it.

This is plain Python without Ray; `store/actor.py` puts it into a process. Blocks are opaque handles to Arrow batches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from rlhf_dist.errors import RewardError, StoreError
from rlhf_dist.records import Failure, PromptTask, RowKey
from rlhf_dist.store.admission import room
from rlhf_dist.store.schema import ROLLOUT_WRITER


class Slice(NamedTuple):
    """Where one row's columns lie: a block and a position in it."""

    block: Any
    row: int


class RowView(NamedTuple):
    """A row as others see it: its key, its length in tokens, and a slice per writer."""

    key: RowKey
    tokens: int
    slices: dict[str, Slice]

    @property
    def rollout(self) -> Slice:
        """Where the rollout's columns lie."""
        return self.slices[ROLLOUT_WRITER]


@dataclass
class _Row:
    tokens: int
    slices: dict[str, Slice]
    taken: bool = False


@dataclass(eq=False)
class _Chunk:
    """Rows that are scored together."""

    keys: tuple[RowKey, ...]
    """In canonical order."""
    missing: int
    """Rows that are not written yet."""


@dataclass
class _ScoringQueue:
    waiting: deque[_Chunk] = field(default_factory=deque)
    """Chunks all of whose rows are there."""
    leased: dict[_Chunk, str] = field(default_factory=dict)


class ExperienceIndex:
    """Bounded, exactly-once bookkeeping of prompts and rows."""

    def __init__(
        self,
        *,
        batch_rows: int,
        chunk_rows: int | None = None,
        max_staleness: int = 0,
        capacity_rows: int | None = None,
        sharers: int = 1,
        first_iteration: int = 0,
        scorers: Sequence[str] | Mapping[str, int],
    ) -> None:
        """Set the bounds.

        Args:
            batch_rows: rows of one iteration.
            chunk_rows: rows that are scored together; None: all that are submitted together.
            max_staleness: versions that a row may be behind when it is trained on.
            capacity_rows: most rows held at once; None: what the schedule needs.
            sharers: most workers among which queued prompts are shared out.
            first_iteration: the iteration that a resumed run begins with.
            scorers: writers that add columns after the rollout, a row is whole when all of them have; or each with the rows of
                an iteration that may be without a score when it writes.

        Raises:
            StoreError: the capacity is below what one batch (and its staleness) needs, which would deadlock.
        """
        needed = (max_staleness + 1) * batch_rows
        if capacity_rows is not None and capacity_rows < needed:
            raise StoreError(f"capacity of {capacity_rows} rows; expected at least {needed}")
        self.batch_rows, self._chunk_rows = batch_rows, chunk_rows
        self.max_staleness = max_staleness
        self.capacity_rows = capacity_rows or needed
        self._sharers = sharers
        self.version = -1
        self.accepted = self.consumed = first_iteration * batch_rows
        self._prompts: deque[PromptTask] = deque()
        self._running: dict[RowKey, tuple[str, PromptTask]] = {}
        self._rows: dict[RowKey, _Row] = {}
        self._chunks: dict[RowKey, _Chunk] = {}
        self._scoring = {scorer: _ScoringQueue() for scorer in scorers}
        self._quarantine = dict(scorers) if isinstance(scorers, Mapping) else dict.fromkeys(scorers, 0)
        self._submitted: Counter[int] = Counter()
        self._failed: dict[RowKey, Failure] = {}
        """Of the rows that are held, those whose scorer failed."""
        self._further = 0
        """Rows of all iterations that were submitted beside those that the staleness rule counts."""
        self._released: set[str] = set()
        """Workers that are gone. A call that one of them left waiting must not be granted anything: nobody would return it."""

    def submit(self, tasks: Iterable[PromptTask], *, further: bool = False) -> None:
        """Queue prompts for generation. Their rows are cut into chunks in this order, which is that of generation.

        Args:
            tasks: the prompts of an iteration, once.
            further: in place of some of that iteration's that were left out; they are granted beside its own rows.
        """
        for iteration, together in groupby(tasks, key=lambda task: task.iteration):
            found = [*together]
            self._prompts.extend(found)
            rows = sum(task.samples for task in found)
            self._submitted[iteration] += rows
            self._further += rows * further
            keys = [key for task in found for key in task.row_keys()]
            size = self._chunk_rows or len(keys)
            for start in range(0, len(keys), size):
                chunk = _Chunk(tuple(sorted(keys[start : start + size])), len(keys[start : start + size]))
                self._chunks |= dict.fromkeys(chunk.keys, chunk)

    def publish(self, version: int) -> None:
        """Tell which weight version workers can have from now on."""
        if version <= self.version:
            raise StoreError(f"version {version} published after version {self.version}")
        self.version = version

    def room(self) -> int:
        """Rows that may start now: the staleness rule, and the capacity (back-pressure)."""
        admitted = room(
            granted=self.accepted + len(self._running) - self._further,
            version=self.version,
            batch_rows=self.batch_rows,
            max_staleness=self.max_staleness,
        )
        return min(admitted, self.capacity_rows - len(self._rows) - len(self._running))

    def lease_prompts(self, worker: str, limit: int) -> list[PromptTask]:
        """Prompts for `worker`, at most `limit` samples together (a single larger prompt is granted alone).

        Each grant is the queue's share of one worker, so grants shrink as the queue does: workers end together, and one that
        joins late finds work (guided self-scheduling: Polychronopoulos and Kuck 1987, IEEE Trans. Computers C-36(12)).
        """
        granted: list[PromptTask] = []
        if worker in self._released:
            return granted
        limit = min(limit, -(-self._queued() // self._sharers))
        samples = 0
        while self._prompts and self._prompts[0].samples <= self.room():
            if granted and samples + self._prompts[0].samples > limit:
                break
            task = self._prompts.popleft()
            granted.append(task)
            samples += task.samples
            self._running.update(dict.fromkeys(task.row_keys(), (worker, task)))
        return granted

    def append(self, worker: str, block: Any, keys: Sequence[RowKey], tokens: Sequence[int]) -> None:
        """Accept finished rows from the worker that leased them; a row from anyone else is refused whole.

        Raises:
            StoreError: a key that `worker` does not hold, so the row is a duplicate or came after its lease ended.
        """
        for key in keys:
            if self._running.get(key, ("", None))[0] != worker:
                raise StoreError(f"{worker} wrote {key}, which is not leased to it")
        for position, (key, length) in enumerate(zip(keys, tokens, strict=True)):
            del self._running[key]
            self._rows[key] = _Row(length, {ROLLOUT_WRITER: Slice(block, position)})
            self._arrived(self._chunks[key])
        self.accepted += len(keys)

    def _arrived(self, chunk: _Chunk) -> None:
        chunk.missing -= 1
        if not chunk.missing:
            for queue in self._scoring.values():
                queue.waiting.append(chunk)

    def lease_rows(self, worker: str, scorer: str, *, patient: bool = False) -> list[RowView]:
        """A chunk whose rows still lack `scorer`'s column, in canonical order; empty where none is whole.

        Args:
            worker: who asks.
            scorer: whose column.
            patient: take none as long as rows are on their way: where scorers share cores with engines, each early pass slows
                down the rows that follow.
        """
        queue = self._scoring[scorer]
        if worker in self._released or not queue.waiting or (patient and self._more_to_come()):
            return []
        chunk = queue.waiting.popleft()
        queue.leased[chunk] = worker
        return [self._view(key) for key in chunk.keys]

    def add_column(
        self,
        worker: str,
        scorer: str,
        block: Any,
        keys: Sequence[RowKey],
        failed: Mapping[RowKey, Failure] | None = None,
    ) -> None:
        """Accept a scorer's column for a chunk that `worker` leased, rows in its order.

        Args:
            worker: who scored.
            scorer: whose column.
            block: where it lies.
            keys: the chunk's rows.
            failed: rows that have no score, and why; what the column holds for them is never read.

        Raises:
            StoreError: the keys are not those of a chunk that `worker` holds.
            RewardError: more rows of the iteration failed than may; names one.
        """
        leased = self._scoring[scorer].leased
        chunk = self._chunks.get(keys[0]) if keys else None
        failed = failed or {}
        if chunk is None or leased.get(chunk) != worker or chunk.keys != tuple(keys) or not failed.keys() <= {*keys}:
            raise StoreError(f"{worker} scored {[*keys]} for {scorer}, which is no chunk that is leased to it")
        self._check_quarantine(failed, self._quarantine[scorer])
        self._failed = {**failed, **self._failed}  # of several scorers that failed, the first's cause
        del leased[chunk]
        for position, key in enumerate(keys):
            self._rows[key].slices[scorer] = Slice(block, position)

    def _check_quarantine(self, failed: Mapping[RowKey, Failure], most: int) -> None:
        for iteration in {key.iteration for key in failed}:
            everything = {key for key in (*self._failed, *failed) if key.iteration == iteration}
            if len(everything) > most:
                key = next(key for key in failed if key.iteration == iteration)
                raise RewardError(
                    f"{failed[key]}; it is answer {key.sample_index} to prompt {key.prompt_id} in iteration {iteration}, of "
                    f"which {len(everything)} samples failed; expected {most} at most (scoring.quarantine)"
                )

    def complete(self, iteration: int) -> bool:
        """Whether every submitted row of the iteration is there with all its columns."""
        return 0 < self._submitted[iteration] == len(self._scored(iteration))

    def take(self, iteration: int, fewest: int = 1) -> list[RowView]:
        """The batch in canonical order, once, without rows that failed; `consume` it when it is trained on.

        What was submitted further, after the rest was taken, is handed out by itself.

        Args:
            iteration: whose batch.
            fewest: samples of a prompt that are of use together; where fewer are left, none is handed out.

        Raises:
            StoreError: the batch is incomplete or already taken.
            RewardError: no row of it is left to train on.
        """
        keys = [key for key in self._scored(iteration) if not self._rows[key].taken]
        if not self.complete(iteration) or not keys:
            raise StoreError(f"iteration {iteration} is not complete or already taken")
        left = Counter(key.prompt_id for key in keys if key not in self._failed)
        chosen = [key for key in keys if key not in self._failed and left[key.prompt_id] >= fewest]
        if not chosen:
            key, failure = min(self.failures(iteration).items())
            raise RewardError(
                f"iteration {iteration}: none of its {len(keys)} samples is left to train on, since "
                f"{len(self.failures(iteration))} have no score; the first is answer {key.sample_index} to prompt "
                f"{key.prompt_id}: {failure}"
            )
        for key in keys:
            self._rows[key].taken = True
        return [self._view(key) for key in sorted(chosen)]

    def failures(self, iteration: int) -> dict[RowKey, Failure]:
        """Rows of an iteration that have no score, and why, until it is consumed; in canonical order."""
        return {key: self._failed[key] for key in sorted(self._failed) if key.iteration == iteration}

    def consume(self, iteration: int) -> None:
        """Forget a trained batch, and what failed in it; its blocks are freed with the last reference.

        Raises:
            StoreError: the batch was not taken.
        """
        keys = self._scored(iteration)
        if not keys or not all(self._rows[key].taken for key in keys):
            raise StoreError(f"iteration {iteration} was consumed but not taken")
        for key in keys:
            del self._rows[key], self._chunks[key]
            self._failed.pop(key, None)
        del self._submitted[iteration]
        self.consumed += len(keys)

    def release(self, worker: str) -> None:
        """Return everything that a lost worker held, for good; unfinished samples of a prompt are generated again."""
        self._released.add(worker)
        lost = [(key, task) for key, (holder, task) in self._running.items() if holder == worker]
        for key, task in reversed(lost):
            del self._running[key]
            self._prompts.appendleft(_only(task, key))
        for queue in self._scoring.values():
            back = [chunk for chunk, holder in queue.leased.items() if holder == worker]
            for chunk in reversed(back):
                del queue.leased[chunk]
                queue.waiting.appendleft(chunk)

    def status(self) -> dict[str, int]:
        """Counts for logs and error messages."""
        waiting = {
            f"waiting_for_{scorer}": sum(scorer not in row.slices for row in self._rows.values())
            for scorer in self._scoring
        }
        return {"queued": self._queued(), "generating": len(self._running), "rows": len(self._rows), **waiting}

    def check_valid(self) -> None:
        """Raise if a law of the index is broken; tests call this after every step.

        Raises:
            StoreError: names the law.
        """
        laws: dict[str, Callable[[], bool]] = {
            "every accepted row is held or consumed": lambda: self.accepted == len(self._rows) + self.consumed,
            "no more rows than the capacity": lambda: len(self._rows) + len(self._running) <= self.capacity_rows,
            "what failed is held, and no more of an iteration than may": lambda: (
                self._failed.keys() <= self._rows.keys()
                and all(
                    n <= max(self._quarantine.values()) for n in Counter(key.iteration for key in self._failed).values()
                )
            ),
            "no row is both running and written": lambda: not self._running.keys() & self._rows.keys(),
            "staleness is bounded": lambda: (
                self.accepted + len(self._running) - self._further
                <= (self.max_staleness + self.version + 1) * self.batch_rows
            ),
            "every row is in a chunk, and a chunk misses what is not written": lambda: (
                all(
                    chunk.missing == sum(each not in self._rows for each in chunk.keys) and key in chunk.keys
                    for key, chunk in self._chunks.items()
                )
                and self._rows.keys() <= self._chunks.keys()
            ),
            "every whole chunk is waiting, leased or scored, once": lambda: all(
                queue.waiting.count(chunk) + (chunk in queue.leased) + self._is_scored(chunk, scorer)
                == (not chunk.missing)
                for scorer, queue in self._scoring.items()
                for chunk in self._chunks.values()
            ),
        }
        for law, holds in laws.items():
            if not holds():
                raise StoreError(f"broken law: {law}; {self.status()}")

    def _is_scored(self, chunk: _Chunk, scorer: str) -> bool:
        return all(key in self._rows and scorer in self._rows[key].slices for key in chunk.keys)

    def _more_to_come(self) -> bool:
        """Whether rows are being generated, or could be as soon as a worker asks."""
        return bool(self._running) or bool(self._prompts and self._prompts[0].samples <= self.room())

    def _queued(self) -> int:
        return sum(task.samples for task in self._prompts)

    def _scored(self, iteration: int) -> list[RowKey]:
        return [
            key
            for key, row in self._rows.items()
            if key.iteration == iteration and all(scorer in row.slices for scorer in self._scoring)
        ]

    def _view(self, key: RowKey) -> RowView:
        row = self._rows[key]
        return RowView(key, row.tokens, dict(row.slices))


def _only(task: PromptTask, key: RowKey) -> PromptTask:
    """The part of a task that yields one row."""
    return PromptTask(task.iteration, task.prompt_id, task.tokens, 1, first_sample=key.sample_index)
