"""LoRA through peft, in place: the model keeps its class, and its linear layers get adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_dist.config import Lora
from rlhf_dist.errors import ConfigError, ModelError

ADAPTER = "default"


def adapt(model: Any, lora: Lora, *, also: tuple[str, ...] = ()) -> None:
    """Freeze a Hugging Face model and give it adapters.

    Args:
        model: causal language model or classifier; changed in place.
        lora: the adapters' settings.
        also: modules that are trained whole, e.g. a classifier's new head.

    Raises:
        ConfigError: no module has one of the names in `lora.targets`, weights are stored transposed, or adapters for all layers
            do not reach some.
    """
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(_config(lora, also), model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"lora.targets is {list(lora.targets)}: {error}") from error
    if lora.targets != ("all-linear",):
        adapted = [*adapted_layers(model).values(), *adapted_layers(model)]
        for target in lora.targets:
            if not any(target in name.split(".") for name in adapted):
                raise ConfigError(
                    f"lora.targets has {target!r}, which no adapted module of {type(model).__name__} is called; expected names "
                    "of linear modules, e.g. q_proj, or all-linear"
                )
    if any(getattr(module, "fan_in_fan_out", False) for module in model.modules()):
        raise ConfigError(
            "lora: this model's layers are transposed (Conv1D, as in GPT-2); expected Linear ones, or no lora"
        )
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if getattr(model.config, "tie_word_embeddings", False) and any(hasattr(end, "base_layer") for end in ends):
        raise ConfigError(
            f"lora.targets is {list(lora.targets)}; this model's input and output embeddings are one tensor, which an adapter "
            "of one of them would change for both. Expected other targets"
        )
    if lora.targets == ("all-linear",) and (left := _left_over(model, also)):
        raise ConfigError(
            f"lora.targets is ['all-linear'], but adapters do not reach {len(left)} layers of {type(model).__name__}, e.g. "
            f"{left[0]}, which would stay as they are. Expected names of modules to adapt, e.g. [q_proj, v_proj], or no lora"
        )
    for name in also:
        for parameter in getattr(model, name).parameters():
            parameter.requires_grad_(True)


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Inside the block an adapted model computes as it did before it was adapted; nothing is copied, gathered or thawed.

    Raises:
        ModelError: it has no adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no adapters, and so no reference of its own; expected lora")
    # Not `enable_adapters`: it freezes them too, which DeepSpeed would take for other parameters than those that it optimises.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in name


def own_name(name: str) -> str:
    """What the model itself calls a parameter that peft has wrapped, once or, as experts that share a module, several times."""
    return re.sub(r"(\.base_layer)+(?=\.)", "", name)


def adapted_layers(model: Any) -> dict[str, str]:
    """The model's own name of each adapted weight, to the name of the module that adapts it."""
    found = {}
    for name, module in model.named_modules():
        if any(ADAPTER in getattr(module, kind, {}) for kind in ("lora_A", "lora_embedding_A")):
            weight = getattr(module, "parameter_name", "weight")
            found[own_name(f"{name}.{weight}")] = name
    return found


def _left_over(model: Any, also: tuple[str, ...]) -> list[str]:
    """Weights of linear layers and of experts that neither have adapters nor are heads."""
    adapted = adapted_layers(model)
    heads = [model.get_output_embeddings(), *(getattr(model, name) for name in also)]
    whole = {id(parameter) for head in heads if head is not None for parameter in head.parameters()}

    def is_layer(module: nn.Module, name: str, weight: nn.Parameter) -> bool:
        stacked = weight.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd)
        return stacked or (weight.dim() == 2 and (isinstance(module, nn.Linear) or ".experts." in name))

    found = []
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(prefix, recurse=False):
            own = own_name(name)
            if (
                not is_adapter(name)
                and own not in adapted
                and id(weight) not in whole
                and is_layer(module, own, weight)
            ):
                found.append(own)
    return found


def save_adapter(model: Any, state: Mapping[str, torch.Tensor], lora: Lora, folder: Path) -> None:
    """Write the adapters alone as peft loads them (`PeftModel.from_pretrained`), beside the merged model.

    Args:
        model: the adapted model; its config names what the adapters are for.
        state: the adapters' parameters, and those of modules that were trained whole, a classifier's head.
        lora: the adapters' settings.
        folder: where to.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = _config(lora, ())
    config.base_model_name_or_path = model.config._name_or_path
    whole = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    config.modules_to_save = sorted({name.rpartition(".")[0] for name in whole}) or None
    config.save_pretrained(folder)
    adapters = {name: tensor for name, tensor in state.items() if is_adapter(name)}
    found = get_peft_model_state_dict(model, state_dict=adapters, adapter_name=ADAPTER) | whole
    tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in found.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _config(lora: Lora, also: tuple[str, ...]) -> Any:
    from peft import LoraConfig

    # peft leaves a head out of "all-linear" only where it knows the task; we name what stays whole.
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    exclude = [*also, "lm_head"] if targets == "all-linear" else None
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, exclude_modules=exclude
    )
