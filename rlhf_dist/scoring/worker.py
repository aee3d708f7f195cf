"""Scoring workers: each adds its columns to finished rows, chunk by chunk, as these become whole.

A chunk is scored by itself, whoever leases it when: so its columns are the same to the last bit (`store/experience.py`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rlhf_dist import progress
from rlhf_dist.cluster.one_thread import OneThread
from rlhf_dist.cluster.pulse import Beat, Pulse
from rlhf_dist.cluster.threads import device_of_this_process
from rlhf_dist.cluster.watch import POLL_S, fetch
from rlhf_dist.errors import NumbersError
from rlhf_dist.imports import import_transformers
from rlhf_dist.records import RowKey
from rlhf_dist.scoring.answers import Failures
from rlhf_dist.secrets import Secrets, keep
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.row import Row, row_of, rows_of
from rlhf_dist.store.schema import keys_of, written_by
from rlhf_dist.telemetry import logs, tracing

log = logging.getLogger(__name__)
FETCH_S = 120.0
"""In which what a scorer is made of comes from another node."""


class Scorer(Protocol):
    """What gives rows the columns of one writer."""

    writer: str

    def score(self, rows: Sequence[Row], failures: Failures | None = None) -> dict[str, list[Any]]:
        """Columns by name, one value per row; rows without one are `failures`, if there may be any."""

    def offload(self) -> None:
        """Give its device's memory back: its models are in host memory until `reload`."""

    def reload(self) -> None:
        """Be ready to score again."""

    def close(self) -> None:
        """End what it started; another thread may be waiting for it."""


class ScoringWorker:
    """A Ray actor around one scorer."""

    def __init__(
        self,
        name: str,
        scorer: type[Any],
        arguments: dict[str, Any],
        quarantine: int = 0,
        secrets: Secrets | None = None,
        *,
        threads: int,
        log_dir: str,
    ) -> None:
        """Take the settings; `start` loads the model, so that its errors arrive as what they are.

        Args:
            name: the worker's name, under which it leases rows.
            scorer: class of the scorer.
            arguments: the scorer's arguments, without the device.
            quarantine: most samples of an iteration that it may fail to score.
            secrets: what it must know and nobody may read.
            threads: CPU threads, where there is no GPU.
            log_dir: where the worker's log file goes.
        """
        self.name, self._log_dir = name, log_dir
        self._kind, self._arguments, self._threads = scorer, arguments, threads
        self._quarantine = quarantine
        keep(secrets or {})
        self._alone = OneThread()
        self._loaded: Scorer | None = None
        self._awake = threading.Event()
        self._awake.set()
        self.progress = Pulse()
        progress.STEPS.append(self.progress.step)

    def __repr__(self) -> str:
        """How Ray's logs call it."""
        return f"ScoringWorker({self.name})"

    def start(self) -> int:
        """Load the scorer's model; returns the process id."""
        logs.to_file(self._log_dir, self.name)
        self._loaded = self._alone(self._load)
        log.info("scorer is loaded", extra={"writer": self._scorer.writer})
        return os.getpid()

    def pulse(self) -> Beat:
        """A sign of life."""
        return self.progress.beat()

    def close(self) -> None:
        """End what the scorer started, functions' processes for one, whatever they are at; the worker is of no use then."""
        if self._loaded is not None:
            self._loaded.close()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def score(self, batch: pa.RecordBatch) -> dict[str, list[Any]]:
        """The scorer's columns by name, in the order of a batch's rows (`store.schema.ROLLOUT`)."""
        return self._alone(self._columns, keys_of(batch), rows_of(batch), Failures(0, keys_of(batch)))

    def renew(self, arguments: dict[str, Any]) -> None:
        """Load the scorer anew with some arguments changed, between two chunks.

        Waits for: a chunk that is being scored, or waited for, which `poll_s` ends.
        """
        self._arguments = {**self._arguments, **arguments}
        self._alone(self._renew)

    def rest(self) -> None:
        """Give the device's memory back and score nothing until `wake`; waits as `renew` does. It may be at rest already."""
        self._awake.clear()
        with tracing.span("rest"):
            self._alone(self._scorer.offload)

    def wake(self) -> None:
        """Be on the device again, and go on scoring."""
        with tracing.span("wake"):
            self._alone(self._scorer.reload)
        self._awake.set()

    def run(self, store: Any, patient: bool, timeout_s: float, poll_s: float = POLL_S) -> None:
        """Until the end of the run: lease a chunk without our columns, compute them, hand them over.

        Waits for: whole chunks. Unblocked by: a rollout worker's append.

        Args:
            store: the store that rows are leased from.
            patient: begin when the last row of all is there.
            timeout_s: seconds granted to each call to the store.
            poll_s: seconds after which it looks up from waiting, for whoever wants it to rest or to load anew.
        """
        while self._awake.wait():
            self._alone(self._serve_a_chunk, store, patient, timeout_s, poll_s)

    @property
    def _scorer(self) -> Scorer:
        assert self._loaded is not None, "`start` comes first"
        return self._loaded

    def _load(self) -> Scorer:
        import_transformers()
        given = {name: fetched(each) for name, each in self._arguments.items()}
        scorer: Scorer = self._kind(**given, device=device_of_this_process(self._threads))
        return scorer

    def _renew(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None  # not two models at once
        self._loaded = self._load()
        if not self._awake.is_set():
            self._loaded.offload()

    def _serve_a_chunk(self, store: Any, patient: bool, timeout_s: float, poll_s: float) -> None:
        """Score the next chunk, if there is one in time."""
        if not self._awake.is_set():
            return
        writer = self._scorer.writer
        leased = store.next_rows.remote(self.name, writer, patient, poll_s)
        views: list[RowView] = fetch(leased, timeout_s=poll_s + timeout_s, doing="leasing rows")
        if not views:
            return
        keys = [RowKey(*view.key) for view in views]
        logs.CONTEXT["iteration"] = keys[0].iteration
        failures = Failures(self._quarantine, keys)
        with tracing.span("score", rows=len(views), iteration=keys[0].iteration):
            columns = self._columns(keys, _read(views, timeout_s), failures)
        schema = written_by(writer)
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        failed = {keys[number]: failure for number, failure in failures.causes.items()}
        done = store.add_column.remote(self.name, writer, keys, batch, failed)
        fetch(done, timeout_s=timeout_s, doing="accepting columns")

    def _columns(self, keys: Sequence[RowKey], rows: Sequence[Row], failures: Failures) -> dict[str, list[Any]]:
        with self.progress.working("scoring"):
            columns = self._scorer.score(rows, failures)
        sound = [number for number in range(len(rows)) if number not in failures.causes]
        _check_finite([keys[number] for number in sound], _chosen(columns, sound), self._scorer.writer)
        return columns


def fetched(argument: Any) -> Any:
    """An argument of a scorer, which for its size may be in the object store."""
    import ray

    return ray.get(argument, timeout=FETCH_S) if isinstance(argument, ray.ObjectRef) else argument


def _chosen(columns: dict[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [values[number] for number in numbers] for name, values in columns.items()}


def _read(views: Sequence[RowView], timeout_s: float) -> list[Row]:
    parts = [view.rollout for view in views]
    refs = list({part.block for part in parts})
    blocks = dict(zip(refs, fetch(refs, timeout_s=timeout_s, doing="handing out samples"), strict=True))
    return [row_of(blocks[part.block], part.row) for part in parts]


def _check_finite(keys: Sequence[RowKey], columns: dict[str, list[Any]], writer: str) -> None:
    for name, values in columns.items():
        for key, value in zip(keys, values, strict=True):
            numbers = np.atleast_1d([*dict(value).values()] if name == "score_parts" else value)
            with np.errstate(over="ignore"):
                wrong = numbers[~np.isfinite(numbers.astype(np.float32))]  # as columns are: 1e39 is infinite there
            if len(wrong):
                raise NumbersError(
                    f"{writer} gave {name} with {wrong[0]:g} for prompt {key.prompt_id}, answer {key.sample_index}, iteration "
                    f"{key.iteration}; expected finite numbers, as float32"
                )
