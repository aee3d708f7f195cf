"""Small random models of every causal family that transformers knows, from its own configs with smaller numbers in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 288
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "embed_dim", "hidden_dim", "word_embed_proj_dim"),
        64,
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "dim_ff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "attention_window"), 8),
    "vocab_size": VOCABULARY,
    "head_dim": 32,
    "v_head_dim": 32,
    "kv_lora_rank": 512,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 64,
    "qk_head_dim": 80,
    "rotary_dim": 16,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "num_codebooks": 1,
    "decoder_start_token_id": 1,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = ["linear_attention", "full_attention"]
"""Layer types where a family mixes recurrence and attention."""
ALSO: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "n_embd": 64, "n_ctx": 128, "rotary_dim": 8},
    "deepseek_v3": {"head_dim": 64, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "deepseek_v4": {"qk_rope_head_dim": 16},
    "youtu": {"head_dim": 64},
    "axk1": {"head_dim": 64},
    "longcat_flash": {"head_dim": 64, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "moe_topk": 2},
    "cohere_compass_text": {"layer_types": ["full_attention", "full_attention"]},
    "dbrx": {
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 288,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": 288,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mimo_v2_flash": {"layer_types": ["full_attention", "sliding_attention"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
        "is_decoder": True,
    },
    "roc_bert": {"pronunciation_vocab_size": 10, "shape_vocab_size": 10},
    "xlstm": {
        "num_heads": 2,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
    },
    "zamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
    },
    "falcon_h1": {"mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "granitemoehybrid": {"logits_scaling": 4.0, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "qwen3_5_text": {"layer_types": HYBRID},
    "qwen3_5_moe_text": {"layer_types": HYBRID},
    "qwen3_next": {"layer_types": HYBRID},
    "zaya": {"num_experts_per_tok": 1},
    "granite": {"logits_scaling": 4.0},
    "granite_swa": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoe_swa": {"logits_scaling": 4.0},
    "granitemoeshared": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 3.0},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "kimi_linear": {"q_lora_rank": None},
}
"""What a family needs beside smaller numbers, and numbers under which its oddities show."""
OPTIONAL = ("pad_token_id", "bos_token_id", "eos_token_id")
LARGEST = 5_000_000


def families() -> list[str]:
    """Every family that `AutoModelForCausalLM` knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str) -> Any:
    """The family's config with small numbers."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(family)
    known = default.to_dict()
    chosen = {
        name: value
        for name, value in SMALL.items()
        if name in known or name in default.attribute_map or name in OPTIONAL
    }
    if known.get("sliding_window") is None:
        chosen.pop("sliding_window", None)
    if "q_lora_rank" in known and known["q_lora_rank"] is None:
        chosen["q_lora_rank"] = None
    return AutoConfig.for_model(family, **{**chosen, **ALSO.get(family, {})})


def write_small(family: str, folder: Path, *, kind: Any, scale: float = 4.0) -> None:
    """A model of random weights, `scale` times as large as a new one's, so that differences show; buffers filled likewise.

    Raises:
        ValueError: the family is not small with small numbers.
    """
    config = small_config(family)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} M parameters with small numbers in its config")
    torch.manual_seed(0)
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
        saved = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in saved and buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer) * 0.1)
    model.save_pretrained(folder)
