"""Attention kernels: which are asked for, and which a family and this machine have."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

PLAINER = ("flash_attention_2", "sdpa", "eager")
"""From the fastest to what every family has: what is taken in place of what is lacking."""


def attention_note(role: str, path: str, config: Any, asked: str) -> str | None:
    """What is taken instead of the kernels that are asked for, and why, as far as a config tells; None where they are there.

    Args:
        role: what the model is for.
        path: its folder.
        config: its config.
        asked: `learner.attention`.
    """
    from transformers import AutoModelForCausalLM

    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if family is None:
        return None
    lacking = {
        "flash_attention_2": None if find_spec("flash_attn") else "the package flash-attn is not installed here",
        "sdpa": None,
        "eager": None,
    }
    if not family._supports_flash_attn:
        lacking["flash_attention_2"] = f"{family.__name__} has no such kernel"
    if not family._supports_sdpa:
        lacking["sdpa"] = f"{family.__name__} has no such kernel"
    taken = next(name for name in PLAINER[PLAINER.index(asked) :] if lacking[name] is None)
    if taken == asked:
        return None
    return f"{role} {path}: attention is computed by {taken} instead of {asked} (learner.attention): {lacking[asked]}"
