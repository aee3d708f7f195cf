"""A model to train: which folder, in which role, and the module that the role makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.adapters import adapt
from rlhf_dist.learner.saving import check_can_be_saved
from rlhf_dist.models import PolicyModel, ValueModel, load_policy, load_value_model


@dataclass(frozen=True)
class ModelSpec:
    """A model to train."""

    path: str
    kind: str
    """`policy` (causal language model) or `value` (sequence classification, one label)."""
    optimizer: Optimizer
    total_steps: int
    temperature: float = 1.0
    value_head: bool = False
    heads: int | None = None
    """Labels of a `value` model, more than one for an ensemble; None: as its folder says, one if it is no classifier yet."""
    shift: float = 0.0
    scale: float = 1.0
    """Of a `value` model's outputs; see `ValueModel`."""
    lora: Lora | None = None
    state: str = ""
    """Folder of a checkpoint's optimiser state, to go on from; empty: start anew."""

    def build(self, settings: Learner) -> PolicyModel | ValueModel:
        """The module in training mode, in fp32: what is computed in bf16 keeps fp32 master weights.

        Raises:
            ModelError: the folder holds no such model, its numbers are not its own, or it could not be saved.
            ConfigError: it has no layers for the adapters.
        """
        module: PolicyModel | ValueModel
        shared: dict[str, Any] = {"dtype": torch.float32, "attention": settings.attention}
        if self.kind == "policy":
            base = self._fitted(load_policy(self.path, **shared), settings)
            module = PolicyModel(base, temperature=self.temperature, value_head=self.value_head)
        else:
            base = load_value_model(self.path, heads=self.heads, new_head=True, **shared)
            if base.config.pad_token_id == base.config.eos_token_id:
                base.config.pad_token_id = (
                    None  # else others would read it before the last token, with which answers end
                )
            module = ValueModel(self._fitted(base, settings, also=("score",)), shift=self.shift, scale=self.scale)
        check_can_be_saved(module.inner)
        return module.train()

    def _fitted(self, base: Any, settings: Learner, *, also: tuple[str, ...] = ()) -> Any:
        """The model with its adapters, and keeping activations or not, before it is wrapped and proves itself."""
        if self.lora is not None:
            adapt(base, self.lora, also=also)
            if not isinstance(base.get_output_embeddings() or nn.Linear(1, 1), nn.Linear):
                raise ConfigError(f"lora.targets is {list(self.lora.targets)}; expected modules other than the head")
        if settings.gradient_checkpointing:
            try:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise ConfigError(
                    f"learner.gradient_checkpointing is true, but {type(base).__name__} cannot compute activations anew; "
                    "expected false"
                ) from error
        return base
