"""The reference policy: how likely it finds what the policy said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_dist.models import PackedBatch, PolicyModel, at_temperature, load_policy
from rlhf_dist.scoring.answers import Failures
from rlhf_dist.scoring.batches import each_output
from rlhf_dist.scoring.hosts import host_of
from rlhf_dist.store.row import Row

COLUMN = {"reference": "ref_log_probs", "teacher": "teacher_log_probs"}


class AskedPolicy:
    """A policy that says how likely a batch's targets are; see `hosts.Host.load`."""

    def __init__(self, path: str, *, dtype: str, attention: str, device: str, processes: int) -> None:
        """Load it."""
        model = load_policy(path, dtype=getattr(torch, dtype), attention=attention, processes=processes)
        self.module = PolicyModel(model.to(device))
        self.layout = self.module.layout

    def __call__(self, batch: PackedBatch, *, temperature: float) -> torch.Tensor:
        """Log-probs, float32 [selected]."""
        with at_temperature(self.module, temperature):
            log_probs: torch.Tensor = self.module(batch)[0]
        return log_probs


class ReferenceScorer:
    """Log-probs of the sampled tokens at the rollout's temperature, as KL to the reference needs them."""

    def __init__(  # noqa: PLR0913 - one per setting
        self,
        path: str,
        *,
        dtype: str,
        batch_tokens: int,
        device: str,
        temperature: float,
        attention: str = "sdpa",
        plain: bool = False,
        writer: str = "reference",
        processes: int = 1,
    ) -> None:
        """Load the reference policy.

        Args:
            path: its folder.
            dtype: torch's name of its dtype.
            batch_tokens: most tokens of a forward pass.
            device: where it goes.
            temperature: of the rollout.
            attention: its attention kernels.
            plain: also say how likely it finds the tokens at temperature 1, for perplexity.
            writer: `reference`, or `teacher`, which says the same under another name.
            processes: over which it is cut.

        Raises:
            ModelError: the folder holds no such model, or its log-probs would not be its own.
        """
        self._host = host_of(device, processes)
        self._model = self._host.load(AskedPolicy, path=path, dtype=dtype, attention=attention)
        self.writer = writer
        self._batch_tokens, self._temperature, self._plain = batch_tokens, temperature, plain

    def score(self, rows: Sequence[Row], failures: Failures | None = None) -> dict[str, list[Any]]:
        """Column `ref_log_probs` or `teacher_log_probs`, with `plain` also `plain_log_probs`, of the sampled tokens."""
        found = {COLUMN[self.writer]: self._log_probs(rows, self._temperature)}
        return {**found, "plain_log_probs": self._log_probs(rows, 1.0)} if self._plain else found

    def offload(self) -> None:
        """Give the device's memory back until `reload`."""
        self._host.offload()

    def reload(self) -> None:
        """Be ready to score again."""
        self._host.reload()

    def close(self) -> None:
        """End the processes of the model, if it has its own."""
        self._host.close()

    def _log_probs(self, rows: Sequence[Row], temperature: float) -> list[Any]:
        found: list[list[float]] = [[] for _ in rows]
        outputs = each_output(
            lambda batch: self._model(batch, temperature=temperature),
            [row.tokens for row in rows],
            [row.predicting for row in rows],
            batch_tokens=self._batch_tokens,
            device=self._host.device,
            layout=self._model.layout,
        )
        for number, log_probs in outputs:
            found[number] = log_probs.tolist()
        return found
