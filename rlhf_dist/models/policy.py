"""A causal language model that scores given tokens: packed inputs in, log-probs of chosen tokens out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlhf_dist.models.packed import PackedBatch, selected_hidden

LOGITS_BYTES = 256 * 2**20
"""[tokens, vocab] logits are made in pieces of this many fp32 bytes, and made again in the backward pass."""


class LogProbHead(nn.Linear):
    """A language-model head that can return log-probs and entropies without the whole [tokens, vocab] logits.

    It is one module call whatever the number of pieces, which ZeRO-3 needs: ranks gather its weight equally often.
    """

    @classmethod
    def around(cls, head: nn.Linear) -> LogProbHead:
        """The same head, sharing its parameters."""
        made = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        made.weight = head.weight
        if head.bias is not None:
            made.bias = head.bias
        return made

    def forward(  # type: ignore[override]
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob of each target and entropy of each distribution, both float32 [tokens].

        Args:
            hidden: [tokens, hidden].
            targets: [tokens].
            temperature: logits are divided by it.
            entropy_grad: whether entropies carry a gradient.
        """
        piece = max(1, LOGITS_BYTES // (4 * self.out_features))
        if len(hidden) <= piece:
            return self._piece(hidden, targets, temperature, entropy_grad)
        parts = [
            checkpoint(self._piece, h, t, temperature, entropy_grad, use_reentrant=False)
            for h, t in zip(hidden.split(piece), targets.split(piece), strict=True)
        ]
        return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([entropy for _, entropy in parts])

    def _piece(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden, self.weight, self.bias).float()
        if temperature != 1.0:
            logits = logits / temperature
        all_log_probs = torch.log_softmax(logits, dim=-1)
        log_probs = all_log_probs.gather(-1, targets[:, None])[:, 0]
        kept = all_log_probs if entropy_grad else all_log_probs.detach()
        return log_probs, -(kept.exp() * kept).sum(-1)


class PolicyModel(nn.Module):
    """A causal language model that scores given tokens, with an optional value head."""

    prefix: ClassVar[str] = "lm."
    """What it puts before Hugging Face's parameter names."""

    def __init__(self, lm: Any, *, temperature: float = 1.0, value_head: bool = False) -> None:
        """Wrap a Hugging Face causal language model; its head is replaced by one that shares its parameters."""
        super().__init__()
        lm.set_output_embeddings(LogProbHead.around(lm.get_output_embeddings()))
        self.lm = lm
        self.temperature = temperature
        self.value_head = nn.Linear(lm.config.hidden_size, 1, bias=False, dtype=lm.dtype) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)

    def forward(
        self, batch: PackedBatch, *, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs of the targets, entropies, and values where there is a head; each float32 [selected]."""
        hidden = selected_hidden(self.lm.base_model, batch)
        head = self.lm.get_output_embeddings()
        log_probs, entropy = head(hidden, batch.targets, self.temperature, entropy_grad)
        values = self.value_head(hidden)[:, 0].float() if self.value_head is not None else None
        return log_probs, entropy, values


@contextmanager
def at_temperature(policy: Any, temperature: float) -> Iterator[None]:
    """A policy's log-probs at another temperature inside the block."""
    kept, policy.temperature = policy.temperature, temperature
    try:
        yield
    finally:
        policy.temperature = kept
