"""Scoring workers: each adds its columns to finished rows, as they appear, in batches of bounded tokens."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.cluster.one_thread import OneThread
from rlhf_dist.cluster.watch import fetch
from rlhf_dist.errors import RewardError
from rlhf_dist.imports import import_transformers
from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.schema import written_by
from rlhf_dist.telemetry import logs, tracing

log = logging.getLogger(__name__)

POLL_S = 5.0


class Scorer(Protocol):
    """What gives rows the columns of one writer."""

    writer: str

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> dict[str, list[Any]]:
        """Columns by name, one value per row, from its prompt and response tokens (numpy int32)."""


class ScoringWorker:
    """A Ray actor around one scorer."""

    def __init__(
        self,
        name: str,
        scorer: type[Any],
        arguments: dict[str, Any],
        *,
        lease_tokens: tuple[int, int],
        threads: int,
        timeout_s: float,
        log_dir: str,
    ) -> None:
        """Take the settings; `start` loads the model, so that its errors arrive as what they are.

        Args:
            name: the worker's name, under which it leases rows.
            scorer: class of the scorer.
            arguments: the scorer's arguments, without the device.
            lease_tokens: fewest tokens of rows leased at once, while more are on their way, and most.
            threads: CPU threads, where there is no GPU.
            timeout_s: seconds granted to each call to the store.
            log_dir: where the worker's log file goes.
        """
        self.name, self._log_dir = name, log_dir
        self._lease_tokens, self._timeout_s = lease_tokens, timeout_s
        self._kind, self._arguments, self._threads = scorer, arguments, threads
        self._alone = OneThread()
        self._scorer: Scorer

    def __repr__(self) -> str:
        """How Ray's logs call it."""
        return f"ScoringWorker({self.name})"

    def start(self) -> int:
        """Load the scorer's model; returns the process id."""
        logs.to_file(self._log_dir, self.name)
        self._scorer = self._alone(self._load)
        log.info("scorer is loaded", extra={"writer": self._scorer.writer})
        return os.getpid()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def run(self, store: Any) -> None:
        """Until the end of the run: lease rows without our columns, compute them, hand them over.

        Waits for: finished samples. Unblocked by: a rollout worker's append.
        """
        self._alone(self._score, store)

    def _load(self) -> Scorer:
        import_transformers()
        cuda = torch.cuda.is_available()
        if not cuda:
            torch.set_num_threads(self._threads)
        scorer: Scorer = self._kind(**self._arguments, device="cuda" if cuda else "cpu")
        return scorer

    def _score(self, store: Any) -> None:
        writer = self._scorer.writer
        while True:
            leased = store.next_rows.remote(self.name, writer, self._lease_tokens, POLL_S)
            views: list[RowView] = fetch(leased, timeout_s=POLL_S + self._timeout_s, doing="leasing rows")
            if not views:
                continue
            logs.CONTEXT["iteration"] = views[0].key[0]
            with tracing.span("score", rows=len(views), iteration=views[0].key[0]):
                blocks = _blocks(views, self._timeout_s)
                prompts, responses = (
                    [_cell(blocks, view, column) for view in views] for column in ("prompt_tokens", "response_tokens")
                )
                columns = self._scorer.score(prompts, responses)
            _check_finite([RowKey(*view.key) for view in views], columns, writer)
            schema = written_by(writer)
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            done = store.add_column.remote(self.name, writer, [view.key for view in views], batch)
            fetch(done, timeout_s=self._timeout_s, doing="accepting columns")


def _blocks(views: Sequence[RowView], timeout_s: float) -> dict[Any, pa.RecordBatch]:
    refs = list({view.slices["rollout"].block for view in views})
    return dict(zip(refs, fetch(refs, timeout_s=timeout_s, doing="handing out samples"), strict=True))


def _cell(blocks: dict[Any, pa.RecordBatch], view: RowView, column: str) -> Any:
    part = view.slices["rollout"]
    return blocks[part.block].column(column)[part.row].values.to_numpy()


def _check_finite(keys: Sequence[RowKey], columns: dict[str, list[Any]], writer: str) -> None:
    for name, values in columns.items():
        for key, value in zip(keys, values, strict=True):
            numbers = [*dict(value).values()] if name == "score_parts" else value
            if not np.isfinite(numbers).all():
                raise RewardError(
                    f"{writer} gave {name} {value} for prompt {key.prompt_id}, answer {key.sample_index}, iteration "
                    f"{key.iteration}; expected finite numbers"
                )
