"""The model that an embedded task starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_dist.config import ModelShape
from rlhf_dist.files import written_aside


def make_policy(shape: ModelShape, tokenizer: Any, folder: Path, *, seed: int) -> None:
    """Write a small Llama with random weights and its tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    llama = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=8 * shape.hidden // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with written_aside(folder) as aside:
        llama.save_pretrained(aside)
        # The model's own save_pretrained imports DeepSpeed, for seconds and with a warning. It writes what is tied once, too.
        weights = {
            name: each for name, each in LlamaForCausalLM(llama).state_dict().items() if name != "lm_head.weight"
        }
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(aside)
