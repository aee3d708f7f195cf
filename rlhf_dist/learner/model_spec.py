"""A model to train: which folder, in which role, and the module that the role makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.learner.adapters import adapt
from rlhf_dist.learner.saving import check_can_be_saved
from rlhf_dist.models import PolicyModel, ValueModel, load_policy, load_value_model, read_config
from rlhf_dist.models.wrapped import RowLayout


class Loaded(NamedTuple):
    """What a rank says of the models that it loaded."""

    parameters: int
    """Of the first one."""
    layout: RowLayout
    """How sequences must lie in rows for all of them."""


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
        """The module in training mode, in fp32, or without weights, which `TrainedModel` then reads in the precision's dtype.

        What is computed in bf16 has fp32 master weights, but DeepSpeed makes them from bf16 ones.

        Raises:
            ModelError: the folder holds no such model, its numbers are not its own, or it could not be saved.
            ConfigError: it has no layers for the adapters.
        """
        base = self._fitted(self._loaded(settings), settings)
        try:
            module = self._wrapped(base)
        except ModelError as error:
            if self.lora is None:
                raise
            raise ModelError(f"{error}. It has adapters, lora.targets {list(self.lora.targets)}: try others") from error
        check_can_be_saved(module.inner)
        return module.train()

    def check_adapters(self) -> None:
        """Refuse adapters by the model's config alone, before a process is started; allocates nothing.

        Raises:
            ConfigError: it has no layers for them.
        """
        if self.lora is None:
            return
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        made: Any = AutoModelForCausalLM if self.kind == "policy" else AutoModelForSequenceClassification
        with torch.device("meta"):
            self._adapt(made.from_config(read_config(self.path)))

    def _loaded(self, settings: Learner) -> Any:
        hollow = settings.precision == "bf16" or (settings.zero_stage == 3 and settings.ranks > 1)
        shared: dict[str, Any] = {"dtype": torch.float32, "attention": settings.kernels, "hollow": hollow}
        if self.kind == "policy":
            return load_policy(self.path, **shared)
        base = load_value_model(self.path, heads=self.heads, new_head=True, **shared)
        if base.config.pad_token_id == base.config.eos_token_id:
            # Else others would read it before its last token, with which answers end.
            base.config.pad_token_id = None
        return base

    def _wrapped(self, base: Any) -> PolicyModel | ValueModel:
        if self.kind == "policy":
            return PolicyModel(base, temperature=self.temperature, value_head=self.value_head)
        return ValueModel(base, shift=self.shift, scale=self.scale)

    def _fitted(self, base: Any, settings: Learner) -> Any:
        """The model with its adapters, and keeping activations or not, before it is wrapped and proves itself."""
        self._adapt(base)
        if settings.gradient_checkpointing:
            try:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise ConfigError(
                    f"learner.gradient_checkpointing is true, but {type(base).__name__} cannot compute activations anew; "
                    "expected false"
                ) from error
        return base

    def _adapt(self, base: Any) -> None:
        if self.lora is None:
            return
        adapt(base, self.lora, also=() if self.kind == "policy" else ("score",))
        if not isinstance(base.get_output_embeddings() or nn.Linear(1, 1), nn.Linear):
            raise ConfigError(f"lora.targets is {list(self.lora.targets)}; expected modules other than the head")
