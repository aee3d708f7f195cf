"""LoRA through peft, in place: the model keeps its class, its linear layers get adapters, and saving merges them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_dist.config import Lora
from rlhf_dist.errors import ConfigError

ADAPTER = "default"
_PART = re.compile(rf"\.(base_layer|lora_[AB]\.{ADAPTER})\.(weight|bias)$")


def adapt(model: Any, lora: Lora, *, also: tuple[str, ...] = ()) -> None:
    """Freeze a Hugging Face model and give it adapters.

    Args:
        model: causal language model or classifier; changed in place.
        lora: the adapters' settings.
        also: modules that are trained whole, e.g. a classifier's new head.

    Raises:
        ConfigError: no module has one of the names in `lora.targets`, or weights are stored transposed.
    """
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(_config(lora, also), model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"lora.targets is {list(lora.targets)}: {error}") from error
    if any(getattr(module, "fan_in_fan_out", False) for module in model.modules()):
        raise ConfigError(
            "lora: this model's layers are transposed (Conv1D, as in GPT-2); expected Linear ones, or no lora"
        )
    for name in also:
        for parameter in getattr(model, name).parameters():
            parameter.requires_grad_(True)


def merged(state: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """Weights under the model's own names: W + (alpha / rank) B A for adapted layers (arXiv:2106.09685, equation 3)."""
    out = {}
    for name, tensor in state.items():
        found = _PART.search(name)
        if found is None:
            out[name] = tensor
        elif found[1] == "base_layer":
            layer = name[: found.start()]
            whole = tensor
            if found[2] == "weight":
                down, up = (state[f"{layer}.lora_{part}.{ADAPTER}.weight"] for part in "AB")
                whole = tensor + (lora.alpha / lora.rank) * (up @ down)
            out[f"{layer}.{found[2]}"] = whole
    return out


def save_adapter(state: Mapping[str, torch.Tensor], lora: Lora, folder: Path, *, base: str) -> None:
    """Write the adapters alone as peft loads them (`PeftModel.from_pretrained`), beside the merged model.

    Args:
        state: the adapted model's weights.
        lora: the adapters' settings.
        folder: where to.
        base: folder or name of the model that they adapt.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = _config(lora, ())
    config.base_model_name_or_path = base
    config.save_pretrained(folder)
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _config(lora: Lora, also: tuple[str, ...]) -> Any:
    from peft import LoraConfig

    # peft leaves a head out of "all-linear" only where it knows the task; we name what stays whole.
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    exclude = [*also, "lm_head"] if targets == "all-linear" else None
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, exclude_modules=exclude
    )
