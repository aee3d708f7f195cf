"""What policies and value models share: a Hugging Face model that reads packed batches, the same in training as in evaluation."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

from rlhf_dist.errors import ModelError
from rlhf_dist.models.cut import Cut
from rlhf_dist.models.fits import counts_places, switching_length
from rlhf_dist.models.heads import backbone_of
from rlhf_dist.models.packed import PackedBatch
from rlhf_dist.models.varlen import NAME, keywords

log = logging.getLogger(__name__)


FLATTENED = ("flash_attention_2", NAME)
"""Kernels for one row without padding, which are told where its sequences begin."""


class RowLayout(Enum):
    """How sequences must lie in rows, so that none sees another."""

    PACKED = "several to a row"
    ONE_ROW = "all in one row"
    """Kernels without masks are told where sequences begin in the only row that there is."""
    ONE_PER_ROW = "one to a row"
    """For families that ignore `position_ids`: state-space layers, positions counted from the left, alibi."""

    def row_tokens(self, wanted: int, micro_batch_tokens: int) -> int:
        """Tokens to a row in this layout, where `wanted` would do if rows may be shared.

        A row in which no second sequence finds room has room for one token; a single row is as long as the micro-batch.
        """
        return {RowLayout.PACKED: wanted, RowLayout.ONE_ROW: micro_batch_tokens, RowLayout.ONE_PER_ROW: 1}[self]


class Selected(NamedTuple):
    """What a head reads."""

    hidden: torch.Tensor
    """[selected, hidden]."""
    targets: torch.Tensor
    """[selected], the tokens that follow."""
    whole: Callable[[torch.Tensor], torch.Tensor]
    """Outputs for these to the outputs of all selected positions of the batch."""


class WrappedModel(nn.Module):
    """A Hugging Face model as part of a module whose parameters carry its names behind a prefix."""

    prefix: ClassVar[str]
    """What it puts before Hugging Face's parameter names."""
    predicts: ClassVar[int]
    """How far ahead its outputs look: at the next token, or not at all."""

    def __init__(self, inner: Any) -> None:
        """Wrap a Hugging Face model under the name that `prefix` says."""
        super().__init__()
        self.cut: Cut | None = None
        setattr(self, self.prefix.rstrip("."), inner)
        self.layout = RowLayout.ONE_ROW if inner.config._attn_implementation in FLATTENED else RowLayout.PACKED
        if counts_places(inner.config):
            self.layout = RowLayout.ONE_PER_ROW
        self.eval()

    @property
    def inner(self) -> Any:
        """The Hugging Face model."""
        return self.get_submodule(self.prefix.rstrip("."))

    def prove(self) -> None:
        """Show that the numbers which will be computed are the model's own (`models.proof`); one without weights does it later.

        Raises:
            ModelError: they are not; says where they differ, and what to do.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Nothing random happens in either mode, but for adapters' own dropout in training.

        Dropout, layer drop and router jitter take many forms; all of them are off in evaluation mode, where gradients flow as
        well. Only what reads the mode for another reason is told it: layers that recompute their activations.
        """
        super().train(mode)
        self.inner.eval()
        for name, module in self.inner.named_modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                _silence(module)
                module.training = mode
            elif "lora_dropout" in name:
                module.training = mode
        return self

    def laid_out(self, batch: PackedBatch) -> PackedBatch:
        """The same sequences in the layout that the model needs."""
        if self.layout is RowLayout.ONE_ROW:
            return batch.one_row()
        return batch.one_per_row() if self.layout is RowLayout.ONE_PER_ROW else batch

    def selected_hidden(self, batch: PackedBatch) -> Selected:
        """Hidden states at the selected positions; where rows are cut over ranks, at those that lie in this rank's piece.

        Raises:
            ModelError: a sequence is so long that the model would treat its neighbours otherwise than alone.
        """
        batch = self.laid_out(batch)
        self._check_length(batch)
        if self.cut is not None:
            piece = self.cut.of(batch)
            states = backbone_of(self.inner)(**piece.inputs, **piece.documents, **self._no_cache)[0]
            return Selected(states.flatten(0, 1)[piece.select], piece.targets, piece.whole)
        # One to a row from the left: these are the positions that a model counts by itself, as it does in its own forward.
        places = {} if self.layout is RowLayout.ONE_PER_ROW else {"position_ids": batch.position_ids}
        documents = self._documents(batch) if self.layout is RowLayout.ONE_ROW else {}
        out = backbone_of(self.inner)(input_ids=batch.input_ids, **places, **documents, **self._no_cache)
        return Selected(out[0].flatten(0, 1)[batch.select], batch.targets, lambda outputs: outputs)

    @cached_property
    def _no_cache(self) -> dict[str, Any]:
        return {"use_cache": False} if self._takes("use_cache") else {}

    def _documents(self, batch: PackedBatch) -> dict[str, Any]:
        """Where each sequence lies, for kernels that keep them apart without a mask; nothing to families that cannot be told."""
        if not self._takes("cu_seq_lens_q"):
            return {}
        return keywords(batch.starts, batch.lengths, batch.input_ids.numel())

    def _takes(self, keyword: str) -> bool:
        known = inspect.signature(backbone_of(self.inner).forward).parameters
        return keyword in known or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())

    @cached_property
    def _switches_at(self) -> int | None:
        return switching_length(self.inner.config)

    def _check_length(self, batch: PackedBatch) -> None:
        if self._switches_at is not None and len(batch.lengths) and int(batch.lengths.max()) > self._switches_at:
            raise ModelError(
                f"{self.inner.config._name_or_path or type(self.inner).__name__}: a sequence has {int(batch.lengths.max())} "
                f"tokens; beyond {self._switches_at} it is treated otherwise, and shorter neighbours with it. Expected at most "
                "as many"
            )


def _silence(module: nn.Module) -> None:
    """Probabilities that a module in training mode draws by itself become 0."""
    for name, value in vars(module).items():
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(module, name, 0.0)
