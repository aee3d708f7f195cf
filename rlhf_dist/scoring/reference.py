"""The reference policy: how likely it finds what the policy said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_dist.models import PolicyModel, at_temperature, load_policy
from rlhf_dist.models.host_copy import HostCopy
from rlhf_dist.scoring.answers import Failures
from rlhf_dist.scoring.batches import each_output
from rlhf_dist.store.row import Row

COLUMN = {"reference": "ref_log_probs", "teacher": "teacher_log_probs"}


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

        Raises:
            ModelError: the folder holds no such model, or its log-probs would not be its own.
        """
        model = load_policy(path, dtype=getattr(torch, dtype), attention=attention).to(device)
        self._model = PolicyModel(model, temperature=temperature)
        self._lodging = HostCopy([self._model])
        self.writer = writer
        self._batch_tokens, self._device, self._plain = batch_tokens, device, plain

    def score(self, rows: Sequence[Row], failures: Failures | None = None) -> dict[str, list[Any]]:
        """Column `ref_log_probs` or `teacher_log_probs`, with `plain` also `plain_log_probs`, of the sampled tokens."""
        found = {COLUMN[self.writer]: self._log_probs(rows)}
        if self._plain:
            with at_temperature(self._model, 1.0):
                found["plain_log_probs"] = self._log_probs(rows)
        return found

    def offload(self) -> None:
        """Give the device's memory back until `reload`."""
        self._lodging.leave()

    def reload(self) -> None:
        """Be ready to score again."""
        self._lodging.come_back()

    def close(self) -> None:
        """It has started nothing."""

    def _log_probs(self, rows: Sequence[Row]) -> list[Any]:
        found: list[list[float]] = [[] for _ in rows]
        outputs = each_output(
            lambda batch: self._model(batch)[0],
            [row.tokens for row in rows],
            [row.predicting for row in rows],
            batch_tokens=self._batch_tokens,
            device=self._device,
            layout=self._model.layout,
        )
        for number, log_probs in outputs:
            found[number] = log_probs.tolist()
        return found
