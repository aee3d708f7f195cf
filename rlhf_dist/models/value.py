"""A classifier read at any position: reward model and critic."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from rlhf_dist.models.packed import PackedBatch, selected_hidden


class ValueModel(nn.Module):
    """A sequence-classification model read at any position: reward model and critic. Several labels are an ensemble."""

    prefix: ClassVar[str] = "classifier."

    def __init__(self, classifier: Any, *, shift: float = 0.0, scale: float = 1.0) -> None:
        """Wrap a Hugging Face `*ForSequenceClassification` model with a linear head named `score`.

        Args:
            classifier: the model.
            shift: taken off each output,
            scale: and then multiplied by; so that a critic which starts as a reward model starts from the reward's units.
        """
        super().__init__()
        self.classifier = classifier
        self.shift, self.scale = shift, scale

    def forward(self, batch: PackedBatch, *, all_heads: bool = False) -> torch.Tensor:
        """Value at each selected position, float32 [selected]: the heads' mean, or with `all_heads` [selected, heads]."""
        hidden = selected_hidden(self.classifier.base_model, batch)
        values: torch.Tensor = self.scale * (self.classifier.score(hidden).float() - self.shift)
        return values if all_heads else values.mean(-1)
