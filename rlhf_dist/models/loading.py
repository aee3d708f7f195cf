"""Hugging Face folders, read: configs, language models, classifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlhf_dist.errors import ModelError
from rlhf_dist.imports import import_transformers
from rlhf_dist.models.folders import check_folder
from rlhf_dist.models.tokenizers import load_tokenizer


def load_policy(path: str, *, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Read a causal language model, dropout off.

    Raises:
        ModelError: the folder is missing or holds no such model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, dtype=dtype, attn_implementation=attention)


def load_value_model(path: str, *, dtype: torch.dtype, attention: str = "sdpa", heads: int | None = None) -> Any:
    """Read a sequence-classification model, dropout off; from a language model, its head starts at random.

    Args:
        path: Hugging Face folder or name.
        dtype: of the weights.
        attention: attention kernels.
        heads: labels; None: as many as the folder says, one if it is no classifier yet.

    Raises:
        ModelError: the folder is missing, or its model has another number of labels or no `score` head.
    """
    from transformers import AutoModelForSequenceClassification

    read = read_config(path)
    is_classifier = any("ForSequenceClassification" in name for name in read.architectures or [])
    labels = heads or (read.num_labels if is_classifier else 1)
    model = _load(
        AutoModelForSequenceClassification, path, dtype=dtype, attn_implementation=attention, num_labels=labels
    )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(
            f"{path}: {type(model).__name__} has no linear `score` head; expected one, as Llama's or Qwen's has"
        )
    return model


def load_classifier(path: str) -> tuple[Any, Any]:
    """A text classifier with a tokenizer of its own.

    Raises:
        ModelError: the folder is missing or holds no such model.
    """
    from transformers import AutoModelForSequenceClassification

    model = _load(AutoModelForSequenceClassification, path, dtype=torch.float32)
    return model, load_tokenizer(path)


def _load(kind: Any, path: str, **options: Any) -> Any:
    check_folder(path)
    try:
        model = kind.from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be read as a Hugging Face model: {error}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def read_config(path: str) -> Any:
    """A model's configuration, without its weights.

    Raises:
        ModelError: the folder is missing or its config unreadable.
    """
    import_transformers()
    from transformers import AutoConfig

    check_folder(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot read its config: {error}") from error
