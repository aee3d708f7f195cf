"""Whether a model has room for what it will read, as its config says: positions, rows of its embedding."""

from __future__ import annotations

from collections.abc import Mapping
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


def rows_of_embedding(config: Any) -> int:
    """Token ids that a model has embeddings for."""
    found: int = config.get_text_config().vocab_size
    return found


def check_vocabulary(models: Mapping[str, tuple[str, Any]], tokenizer: Any) -> None:
    """Refuse models that some token has no row in. A policy may sample any row of its own embedding, padding of the table too.

    Args:
        models: role to folder and config; those that read another model's samples after it.
        tokenizer: whose tokens the first model reads.

    Raises:
        ModelError: names both numbers, and how to make them fit.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1) + 1
    (first, (path, config)), *others = models.items()
    rows = rows_of_embedding(config)
    if rows < largest:
        raise ModelError(
            f"{first} {path}: its embedding has {rows} rows, its tokenizer {largest} tokens; expected at least as many rows. "
            "Resize it with model.resize_token_embeddings and save it again"
        )
    for role, (other, its) in others:
        if rows_of_embedding(its) < rows:
            raise ModelError(
                f"{role} {other}: its embedding has {rows_of_embedding(its)} rows, that of the {first} {path} {rows}, any of which "
                "may be sampled; expected at least as many. Resize it with model.resize_token_embeddings and save it again"
            )
