"""A causal language model that scores given tokens: packed inputs in, log-probs of chosen tokens out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from rlhf_dist.errors import ModelError
from rlhf_dist.models.heads import LogProbHead, OwnFinish, ScalarHead
from rlhf_dist.models.packed import PackedBatch
from rlhf_dist.models.proof import prove
from rlhf_dist.models.wrapped import WrappedModel


class PolicyModel(WrappedModel):
    """A causal language model that scores given tokens, with an optional value head."""

    prefix: ClassVar[str] = "lm."
    predicts: ClassVar[int] = 1

    def __init__(self, lm: Any, *, temperature: float = 1.0, value_head: bool = False) -> None:
        """Wrap a Hugging Face causal language model; its head is replaced by one that shares its parameters.

        Raises:
            ModelError: log-probs would not be the model's own; says where they differ, and what to do.
        """
        head = lm.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(
                f"{lm.config._name_or_path or type(lm).__name__}: {type(lm).__name__} has no linear output embedding "
                f"(found {type(head).__name__}); expected a causal language model with one"
            )
        super().__init__(lm)
        made = LogProbHead.around(head)
        made.finish = OwnFinish.of(lm)
        lm.set_output_embeddings(made)
        self.temperature = temperature
        self.value_head: ScalarHead | None = None
        self.prove()
        if value_head:
            width = lm.config.get_text_config().hidden_size
            self.value_head = ScalarHead(width, 1, bias=False, dtype=lm.dtype, device=lm.device)
            nn.init.zeros_(self.value_head.weight)

    def prove(self) -> None:
        """See `WrappedModel`."""
        with at_temperature(self, 1.0):
            prove(self, _own_log_probs)

    def forward(
        self, batch: PackedBatch, *, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs of the targets, entropies, and values where there is a head; each float32 [selected]."""
        hidden, targets, whole = self.selected_hidden(batch)
        head = self.inner.get_output_embeddings()
        log_probs, entropy = head(hidden, targets, self.temperature, entropy_grad)
        values = self.value_head(hidden)[:, 0] if self.value_head is not None else None
        return whole(log_probs), whole(entropy), None if values is None else whole(values)


def _own_log_probs(model: PolicyModel, tokens: torch.Tensor) -> torch.Tensor:
    """What the language model's own forward says of tokens[1:], float32 [tokens - 1]."""
    logits = model.inner(input_ids=tokens[None]).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, tokens[1:, None])[:, 0]


@contextmanager
def at_temperature(policy: Any, temperature: float) -> Iterator[None]:
    """A policy's log-probs at another temperature inside the block."""
    kept, policy.temperature = policy.temperature, temperature
    try:
        yield
    finally:
        policy.temperature = kept
