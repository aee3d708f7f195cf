"""Attention kernels: which are asked for, and which a family and this machine have."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from rlhf_dist.models.heads import FAMILY_ERRORS
from rlhf_dist.models.varlen import NAME, NotComputed, register

PLAINER = ("flash_attention_2", NAME, "sdpa", "eager")
"""From the fastest to what every family has: what is taken in place of what is lacking."""
AUTO = "auto"


class Kernel(NamedTuple):
    """What attention is computed by."""

    name: str
    wanted: str
    """What `auto` stands for here, or what was asked for by name."""
    reason: str | None
    """Why it is not what was wanted."""


def kernel_of(kind: Any, config: Any, asked: str) -> Kernel:
    """The kernel that a family's models get, as far as a config tells.

    Args:
        kind: an auto class, e.g. `AutoModelForCausalLM`.
        config: a model's.
        asked: `learner.attention`.
    """
    register()
    wanted = best() if asked == AUTO else asked
    family: Any = kind._model_mapping.get(type(config), None)
    if family is None:
        return Kernel(wanted, wanted, None)
    reasons: list[str] = []
    for name in PLAINER[PLAINER.index(wanted) :]:
        reason = _lacking(name, family, config)
        if reason is None:
            return Kernel(name, wanted, reasons[0] if reasons else None)
        reasons.append(reason)
    raise AssertionError("every family has eager attention")


def best() -> str:
    """What `auto` stands for in this process: no padding and no mask on a GPU; on a CPU the demo's own numbers, bit for bit."""
    return NAME if torch.cuda.is_available() else "sdpa"


def with_cache(asked: str) -> str:
    """The kernel for decoding, which attends to keys and values of a cache."""
    return "sdpa" if asked in (AUTO, NAME) else asked


def attention_note(role: str, path: str, config: Any, asked: str) -> str | None:
    """What is taken instead of the kernels that are asked for, and why, as far as a config tells; None where they are there.

    Args:
        role: what the model is for.
        path: its folder.
        config: its config.
        asked: `learner.attention`.
    """
    from transformers import AutoModelForCausalLM

    kernel = kernel_of(AutoModelForCausalLM, config, asked)
    if kernel.reason is None:
        return None
    instead = f"{kernel.name} instead of {kernel.wanted} (learner.attention)"
    return f"{role} {path}: attention is computed by {instead}: {kernel.reason}"


def _lacking(name: str, family: Any, config: Any) -> str | None:
    """Why a family's models cannot have a kernel here."""
    no_such = f"{family.__name__} has no such kernel"
    if name == "flash_attention_2":
        there = find_spec("flash_attn") is not None
        return (
            (None if family._supports_flash_attn else no_such)
            if there
            else "the package flash-attn is not installed here"
        )
    if name == "sdpa":
        return None if family._supports_sdpa else no_such
    return _untold(family, config) if name == NAME else None


def _untold(family: Any, config: Any) -> str | None:
    """What a family wants that `varlen` does not compute: its own code says so, when it is run on tensors without memory."""
    if not family._supports_attention_backend:
        return f"{family.__name__} computes attention in its own way"
    try:
        with torch.device("meta"), torch.no_grad():
            made = family._from_config(copy.deepcopy(config), attn_implementation=NAME, dtype=torch.bfloat16)
            made.eval()(input_ids=torch.zeros(1, 8, dtype=torch.int64))
    except NotComputed as error:
        return str(error)
    except FAMILY_ERRORS as error:
        # Some of it asks for numbers, which these tensors do not have: the proof with the weights will tell.
        return None if "meta" in str(error) else f"{family.__name__} computes attention in its own way: {error}"
    return None
