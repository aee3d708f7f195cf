"""A classifier read at any position: reward model and critic."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from rlhf_dist.models.heads import ScalarHead
from rlhf_dist.models.packed import PackedBatch
from rlhf_dist.models.proof import prove
from rlhf_dist.models.wrapped import WrappedModel


class ValueModel(WrappedModel):
    """A sequence-classification model read at any position: reward model and critic. Several labels are an ensemble."""

    prefix: ClassVar[str] = "classifier."
    predicts: ClassVar[int] = 0

    def __init__(self, classifier: Any, *, shift: float = 0.0, scale: float = 1.0) -> None:
        """Wrap a Hugging Face `*ForSequenceClassification` model with a linear head named `score`.

        Args:
            classifier: the model.
            shift: taken off each output,
            scale: and then multiplied by; so that a critic which starts as a reward model starts from the reward's units.

        Raises:
            ModelError: values would not be the model's own; says where they differ, and what to do.
        """
        super().__init__(classifier)
        classifier.score = ScalarHead.around(classifier.score)
        self.shift, self.scale = shift, scale
        self.prove()

    def prove(self) -> None:
        """See `WrappedModel`."""
        shift, scale = self.shift, self.scale
        self.shift, self.scale = 0.0, 1.0
        prove(self, _own_score)
        self.shift, self.scale = shift, scale

    def forward(self, batch: PackedBatch, *, all_heads: bool = False) -> torch.Tensor:
        """Value at each selected position, float32 [selected]: the heads' mean, or with `all_heads` [selected, heads]."""
        selected = self.selected_hidden(batch)
        values = selected.whole(self.scale * (self.inner.score(selected.hidden) - self.shift))
        return values if all_heads else values.mean(-1)


def _own_score(model: ValueModel, tokens: torch.Tensor) -> torch.Tensor:
    """What the classifier's own forward says after the last token, float32 [1]: the mean of its labels' logits."""
    mask = torch.ones_like(tokens[None])
    logits: torch.Tensor = model.inner(input_ids=tokens[None], attention_mask=mask).logits[0]
    return logits.float().mean()[None]
