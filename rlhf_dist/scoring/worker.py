"""Scoring workers: each adds one column to finished rows, as they appear, in batches of bounded tokens."""

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
from rlhf_dist.data.packing import micro_batches, pack_rows
from rlhf_dist.errors import RewardError
from rlhf_dist.models import PolicyModel, ValueModel, load_policy, load_value_model, pack, response_positions
from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.schema import written_by
from rlhf_dist.telemetry import logs, tracing

log = logging.getLogger(__name__)

POLL_S = 5.0


class Scorer(Protocol):
    """A model that gives rows a column."""

    writer: str

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[Any]:
        """One value per row, from its prompt and response tokens (numpy int32)."""


class RewardScorer:
    """The reward model: a number per answer, read at its last token."""

    writer = "reward"

    def __init__(self, path: str, *, bf16: bool, batch_tokens: int, device: str) -> None:
        """Load the reward model."""
        model = load_value_model(path, dtype=torch.bfloat16 if bf16 else torch.float32)
        self._model = ValueModel(model).to(device).eval()
        self._batch_tokens, self._device = batch_tokens, device

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
        """Scores in the order of the rows."""
        sequences = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
        selections = [range(len(x) - 1, len(x)) for x in sequences]
        scores = [0.0] * len(sequences)
        for micro in _micro_batches(sequences, self._batch_tokens):
            values = self._model(pack(sequences, selections, micro).to(self._device))
            for index, value in zip([i for row in micro for i in row], values.tolist(), strict=True):
                scores[index] = value
        return scores


class ReferenceScorer:
    """The reference policy: log-probs of the response tokens at the rollout's temperature."""

    writer = "reference"

    def __init__(self, path: str, *, bf16: bool, batch_tokens: int, device: str, temperature: float) -> None:
        """Load the reference policy."""
        model = load_policy(path, dtype=torch.bfloat16 if bf16 else torch.float32)
        self._model = PolicyModel(model, temperature=temperature).to(device).eval()
        self._batch_tokens, self._device = batch_tokens, device

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[list[float]]:
        """Log-probs per response token, in the order of the rows."""
        sequences = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
        selections = [response_positions(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
        found: list[list[float]] = [[] for _ in sequences]
        for micro in _micro_batches(sequences, self._batch_tokens):
            log_probs, _, _ = self._model(pack(sequences, selections, micro).to(self._device))
            order = [i for row in micro for i in row]
            for index, part in zip(order, log_probs.split([len(selections[i]) for i in order]), strict=True):
                found[index] = part.tolist()
        return found


class ScoringWorker:
    """A Ray actor around one scorer."""

    def __init__(
        self,
        name: str,
        scorer: type[Any],
        arguments: dict[str, Any],
        *,
        lease_tokens: int,
        threads: int,
        timeout_s: float,
        log_dir: str,
    ) -> None:
        """Take the settings; `start` loads the model, so that its errors arrive as what they are.

        Args:
            name: the worker's name, under which it leases rows.
            scorer: `RewardScorer` or `ReferenceScorer`.
            arguments: the scorer's arguments, without the device.
            lease_tokens: most tokens of rows leased at once.
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
        log.info("model is loaded", extra={"model": self._arguments["path"]})
        return os.getpid()

    def take_spans(self) -> list[tracing.Span]:
        """Spans recorded since the last call."""
        return tracing.take()

    def run(self, store: Any) -> None:
        """Until the end of the run: lease rows without our column, compute it, hand it over.

        Waits for: finished samples. Unblocked by: a rollout worker's append.
        """
        self._alone(self._score, store)

    def _load(self) -> Scorer:
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
                values = self._scorer.score(prompts, responses)
            _check_finite([RowKey(*view.key) for view in views], values, writer)
            schema = written_by(writer)
            column = pa.RecordBatch.from_arrays([pa.array(values, schema.field(0).type)], schema=schema)
            done = store.add_column.remote(self.name, writer, [view.key for view in views], column)
            fetch(done, timeout_s=self._timeout_s, doing="accepting a column")


def _micro_batches(sequences: Sequence[Any], batch_tokens: int) -> list[list[list[int]]]:
    lengths = [len(x) for x in sequences]
    rows = pack_rows(range(len(lengths)), lengths, row_tokens=max(lengths))
    return micro_batches(rows, lengths, budget=batch_tokens)


def _blocks(views: Sequence[RowView], timeout_s: float) -> dict[Any, pa.RecordBatch]:
    refs = list({view.slices["rollout"].block for view in views})
    return dict(zip(refs, fetch(refs, timeout_s=timeout_s, doing="handing out samples"), strict=True))


def _cell(blocks: dict[Any, pa.RecordBatch], view: RowView, column: str) -> Any:
    part = view.slices["rollout"]
    return blocks[part.block].column(column)[part.row].values.to_numpy()


def _check_finite(keys: Sequence[RowKey], values: Sequence[Any], writer: str) -> None:
    for key, value in zip(keys, values, strict=True):
        if not np.isfinite(value).all():
            raise RewardError(
                f"{writer} gave {value} for prompt {key.prompt_id}, answer {key.sample_index}, iteration {key.iteration}; "
                "expected finite numbers"
            )
