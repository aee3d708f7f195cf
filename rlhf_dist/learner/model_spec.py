"""A model to train: which folder, in which role, and the module that the role makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.learner.adapters import adapt
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
            ModelError: the folder holds no such model.
            ConfigError: it has no layers for the adapters.
        """
        module: PolicyModel | ValueModel
        shared: dict[str, Any] = {"dtype": torch.float32, "attention": settings.attention}
        if self.kind == "policy":
            base = self._adapted(load_policy(self.path, **shared))
            module = PolicyModel(base, temperature=self.temperature, value_head=self.value_head)
        else:
            base = self._adapted(load_value_model(self.path, heads=self.heads, **shared), also=("score",))
            module = ValueModel(base, shift=self.shift, scale=self.scale)
        if settings.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        return module.train()

    def _adapted(self, base: Any, *, also: tuple[str, ...] = ()) -> Any:
        if self.lora is not None:
            adapt(base, self.lora, also=also)
        return base
