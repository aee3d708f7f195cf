"""Models of real shapes, written down by their numbers; nobody has their weights here."""

from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {  # Qwen2.5-1.5B
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
    },
    "8b": {  # Llama-3.1-8B
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131_072,
    },
    "70b": {  # Llama-3.1-70B
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131_072,
    },
}
PARAMETERS = {"1.5b": 1_543_714_304, "8b": 8_030_261_248, "70b": 70_553_706_496}
"""As their makers say."""


def config_of(name: str, **changes: Any) -> Any:
    """A transformers config of that shape."""
    from transformers import AutoConfig

    shape = {**SHAPES[name], **changes}
    return AutoConfig.for_model(shape.pop("model_type"), **shape)


def write_shape(name: str, folder: Path, *, kind: str = "policy") -> str:
    """A model folder that has a config, and no weights."""
    config = config_of(name)
    if kind == "value":
        config.num_labels, config.architectures = 1, [f"{type(config).__name__[:-6]}ForSequenceClassification"]
    config.save_pretrained(folder)
    return str(folder)
