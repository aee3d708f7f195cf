"""How large models are, counted from their configs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_dist.config import Lora
from rlhf_dist.errors import ModelError


@dataclass(frozen=True)
class ModelSize:
    """Counts that memory and time depend on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Query heads times head size."""
    kv_elements: int
    """Key and value elements per token, all layers."""
    vocabulary: int
    adapters: int = 0
    """Parameters of the adapters that it has to be trained with."""
    adapted: int = 0
    """Its own parameters that these change."""
    kind: str = "policy"
    """`policy`, which has a head of logits, or `value`."""

    @property
    def kv_width(self) -> float:
        """Key and value elements per token of one layer."""
        return self.kv_elements / max(1, self.layers)


def model_size(config: Any, *, kind: str, lora: Lora | None = None) -> ModelSize:
    """Count a model's parameters from its Hugging Face config without allocating them.

    Args:
        config: the model's config.
        kind: `policy` or `value`.
        lora: adapters that it is trained with; None: all of it is trained.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "value":
        config.num_labels = 1
    made: Any = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model = made.from_config(config)
    except ValueError as error:
        wanted = "causal language model" if kind == "policy" else "sequence classification"
        raise ModelError(
            f"{config._name_or_path}: transformers has no {wanted} of the kind {config.model_type!r}; expected a family that has"
        ) from error

    def said(name: str, default: int) -> int:
        """Families without attention, or with another in each layer, leave such numbers out, or give a list."""
        found = getattr(config, name, None)
        return found if isinstance(found, int) else default

    heads = said("num_attention_heads", 1)
    head_size = said("head_dim", config.hidden_size // heads)
    layers = said("num_hidden_layers", 1)
    adapted = _adapted(model, lora) if lora is not None else []
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
        hidden=config.hidden_size,
        intermediate=said("intermediate_size", 4 * config.hidden_size),
        attention=head_size * heads,
        kv_elements=2 * layers * said("num_key_value_heads", heads) * head_size,
        vocabulary=config.vocab_size,
        adapters=sum(lora.rank * sum(shape[-2:]) * math.prod(shape[:-2]) for shape in adapted)
        if lora is not None
        else 0,
        adapted=sum(map(math.prod, adapted)),
        kind=kind,
    )


def _adapted(model: Any, lora: Lora) -> list[tuple[int, ...]]:
    """Shapes of the weights that adapters would change: of linear layers and, stacked, of experts."""
    from torch import nn

    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    whole = {id(parameter) for head in heads if head is not None for parameter in head.parameters()}
    found = []
    for name, module in model.named_modules():
        for own, weight in module.named_parameters(name, recurse=False):
            named = any(target in own.split(".") for target in lora.targets)
            stacked = weight.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd)
            is_layer = stacked or (weight.dim() == 2 and isinstance(module, nn.Linear))
            if is_layer and id(weight) not in whole and (named or lora.targets == ("all-linear",)):
                found.append(tuple(weight.shape))
    return found


def together(sizes: Sequence[ModelSize]) -> ModelSize:
    """Several models in one process, which work one after the other: all weights, the largest one's activations."""
    largest = max(sizes, key=lambda size: size.parameters)
    added = {name: sum(getattr(size, name) for size in sizes) for name in ("parameters", "adapters", "adapted")}
    return replace(largest, **added)
