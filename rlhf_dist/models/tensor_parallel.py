"""Models cut over several processes by transformers' own tensor-parallel plans: each holds its rows or columns of the weights.

All processes of the group call forward with the same batch, and all have the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rlhf_dist.errors import ModelError

Layer = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def check_can_be_cut(path: str, config: Any, processes: int) -> None:
    """Refuse a model that cannot be spread over so many processes, by its config alone.

    Raises:
        ModelError: its family has no plan, or something of it cannot be divided.
    """
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise ModelError(
            f"{path}: scoring.tensor_parallel is {processes}, and transformers has no tensor-parallel plan for the family "
            f"{text.model_type!r}; expected 1, a family that has one, as Llama's and Qwen's, or a reference and teacher that "
            "the learner's ranks hold (scoring.reference_on, scoring.teacher_on)"
        )
    heads = getattr(text, "num_attention_heads", processes)
    counts = {
        "attention heads": heads,
        "key heads": getattr(text, "num_key_value_heads", None) or heads,
        "tokens in its vocabulary": text.vocab_size,
    }
    if odd := [f"{count} {what}" for what, count in counts.items() if count % processes]:
        raise ModelError(
            f"{path}: scoring.tensor_parallel is {processes}, which does not divide its {' and its '.join(odd)}; expected a "
            "number that does"
        )


def loading_options(processes: int) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told in each of the group's processes, whose process group is up."""
    if processes == 1:
        return {}
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=processes)}


def is_cut(weight: torch.Tensor) -> bool:
    """Whether each process holds a part of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def from_parts(layer: Layer, weight: Any, bias: Any) -> torch.Tensor:
    """[..., outputs] of a layer whose rows are cut over the processes: each computes its own outputs, and all get all.

    Args:
        layer: says the outputs of rows and their biases.
        weight: [outputs, width], cut.
        bias: [outputs], cut, or None.
    """
    from torch.distributed.tensor import DTensor, Shard

    part = layer(weight.to_local(), None if bias is None else bias.to_local())
    whole: torch.Tensor = DTensor.from_local(part, weight.device_mesh, [Shard(-1)], run_check=False).full_tensor()
    return whole
