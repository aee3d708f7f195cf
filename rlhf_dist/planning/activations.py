"""Bytes that passes through a model need beside its weights, counted operation by operation.

The counting is that of Korthikanti et al. 2022, arXiv:2205.05198, section 4, for today's gated decoders with rotary positions.
Tests compare it with torch's own tracker on fake tensors of real shapes, `benchmarks/memory.py` with processes.
"""

from __future__ import annotations

import math

from rlhf_dist.models import LOGITS_BYTES
from rlhf_dist.planning.sizes import ModelSize

BYTES = {"float32": 4, "bfloat16": 2}


def layer_elements(size: ModelSize, dtype: str, *, masked_row: int = 0) -> float:
    """Elements per token that one layer's forward pass leaves for its backward pass.

    h is the hidden size, a that of all query heads, f the gate's. Each of two norms keeps its input, in fp32, what it becomes,
    and that scaled (6 h, in 16 bits 8 h); attention keeps rotated queries, keys, values, and its output (2 a, k and v); the
    gate, its activation, the up projection and their product are kept whole (4 f). A mask, which samples that share a row need
    without kernels for packed ones, makes keys and values be repeated for all query heads, and is itself as wide as the row.

    Args:
        size: the model's.
        dtype: of the pass.
        masked_row: tokens of a row under a mask; 0: there is none.
    """
    norms = 6 if dtype == "float32" else 8
    keys = size.kv_width if not masked_row else 2 * size.attention + masked_row
    return norms * size.hidden + 2 * size.attention + keys + 4 * size.intermediate


def training_bytes(size: ModelSize, dtype: str, tokens: int, *, checkpointing: bool, masked_row: int = 0) -> float:
    """Kept between forward and backward pass, with what one layer needs for its gradients (two of the gate's width).

    With checkpointing each layer keeps its input, and one layer at a time the rest.
    """
    layer = layer_elements(size, dtype, masked_row=masked_row)
    kept = size.layers * size.hidden + layer if checkpointing else size.layers * layer
    return float(tokens * (kept + 2 * size.intermediate) * BYTES[dtype])


def looking_bytes(size: ModelSize, dtype: str, tokens: int) -> float:
    """Of a pass without gradients at its widest: activated gate, up projection and product beside residual and normed input."""
    return float(tokens * 3 * (size.intermediate + size.hidden) * BYTES[dtype])


def head_bytes(size: ModelSize, dtype: str, tokens: int, *, learns: bool) -> float:
    """What the head of log-probs needs beside hidden states: five times a piece of logits in fp32, gradients of its weight.

    A piece's logits, their log-softmax, and three for the entropy. Going back, the weight's gradient is made piece by piece: the
    sum up to now, the next one, and both together. What the last norm keeps is half a layer's norms, and chosen states two more.
    """
    if size.kind != "policy":
        return 0.0
    logits = 4.0 * tokens * size.vocabulary
    piece = min(LOGITS_BYTES, logits)
    weight = float(size.vocabulary * size.hidden * BYTES[dtype])
    gradients = (3 if math.ceil(logits / LOGITS_BYTES) > 1 else 1) * weight
    if not learns:
        return 5 * piece
    states = tokens * size.hidden * (5 if dtype == "float32" else 6) * BYTES[dtype]
    return states + max(5 * piece, piece + gradients)
