"""How long a sequence a model can take, as its config says."""

from __future__ import annotations

from typing import Any

from rlhf_dist.errors import ModelError


def positions_of(config: Any) -> int | None:
    """Positions that a model has; None where its config bounds them nowhere."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        found = getattr(text, name, None)
        if isinstance(found, int):
            return found
    return None


def switching_length(config: Any) -> int | None:
    """Longest sequence up to which a rotary embedding is one and the same; None where it never changes.

    `longrope` (Phi-3, arXiv:2404.14219) and dynamic NTK scaling choose frequencies by the longest sequence of a batch, so that a
    token's log-prob would depend on its neighbours; and vLLM chooses by a rule of its own.
    """
    text = config.get_text_config()
    kinds = getattr(text, "rope_parameters", None) or {}
    nested = [each for each in kinds.values() if isinstance(each, dict)]
    found = []
    for rope in nested or [kinds]:
        kind = str(rope.get("rope_type", rope.get("type", "default")))
        if kind == "longrope":
            own = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            found.append(own or positions_of(config))
        elif "dynamic" in kind:
            found.append(positions_of(config))
    return min((each for each in found if each is not None), default=None)


def check_length(role: str, path: str, config: Any, longest: int, *, lower: str) -> None:
    """Refuse sequences that a model has no room for, or treats otherwise than shorter ones.

    Args:
        role: what the model is for, in the message.
        path: its folder.
        config: its config.
        longest: tokens of the longest sequence.
        lower: which settings bound it, in the message.

    Raises:
        ModelError: names all of that and the bound.
    """
    positions, same = positions_of(config), switching_length(config)
    if same is not None and longest > same:
        raise ModelError(
            f"{role} {path}: its rotary embedding changes for sequences beyond {same} tokens, and log-probs of shorter ones in "
            f"the same batch with it; the longest would have {longest}. Lower {lower}, or take a model that does not switch"
        )
    if positions is not None and longest > positions:
        raise ModelError(
            f"{role} {path} has {positions} positions; the longest sequence would have {longest} tokens. Lower {lower}, or take "
            "a model with more positions"
        )
