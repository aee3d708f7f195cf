"""Whether a model has room for what it will read, as its config says: positions, rows of its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_dist.errors import ModelError
from rlhf_dist.models.loading import read_config
from rlhf_dist.models.roles import check_role


def positions_of(config: Any) -> int | None:
    """Positions that a model has; None where its config bounds them nowhere."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        found = getattr(text, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def longest_alike(config: Any) -> int | None:
    """Longest sequence that a model has room for and treats as it treats shorter ones; None: any."""
    return min((each for each in (positions_of(config), switching_length(config)) if each is not None), default=None)


def counts_places(config: Any) -> bool:
    """Whether some layer cuts a sequence into blocks by the places of its tokens in the row, and not by their positions.

    Such a sequence must begin where its row does, without padding before it. Blocks may be longer than any trial.
    """
    text = config.get_text_config()
    fields = ("attention_chunk_size", "index_block_size", "compress_rates")  # Llama 4, MiniMax-M3, DeepSeek-V4
    return any(getattr(text, name, None) for name in fields)


def switching_length(config: Any) -> int | None:
    """Longest sequence up to which a model treats all sequences alike; None where it always does.

    Rotary embeddings of the kinds `longrope` (Phi-3, arXiv:2404.14219) and dynamic NTK choose frequencies by the longest sequence
    of a batch, so that a token's log-prob would depend on its neighbours; and vLLM chooses by a rule of its own. Doge keeps the
    likeliest keys of a window, beyond which a token sees what comes after it.
    """
    text = config.get_text_config()
    kinds = getattr(text, "rope_parameters", None) or {}
    nested = [each for each in kinds.values() if isinstance(each, dict)]
    found = [getattr(text, "keep_window_size", None)]
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


def check_models(models: Sequence[tuple[str, str]], tokenizer: Any, longest: int, *, lower: str) -> None:
    """Refuse, by their configs alone, models that cannot do what a stage wants of them.

    Args:
        models: role and folder; the first one's samples are read by the others. Roles are `policy`, `reference`, `judge`, which
            give tokens, `reward`, which gives scores, and `critic` or `start`, which may do either.
        tokenizer: whose tokens they read.
        longest: tokens of the longest sequence.
        lower: which settings bound it.

    Raises:
        ModelError: names role and folder, what was found and what was expected.
    """
    configs = [(role, path, read_config(path)) for role, path in models]
    for role, path, config in configs:
        check_role(role, path, config)
        _check_length(role, path, config, longest, lower)
    _check_rows(configs, max(tokenizer.get_vocab().values(), default=-1) + 1)


def _check_length(role: str, path: str, config: Any, longest: int, lower: str) -> None:
    """Room for the longest sequence, and no other treatment of it than of shorter ones."""
    positions, same = positions_of(config), switching_length(config)
    if same is not None and longest > same:
        raise ModelError(
            f"{role} {path} treats sequences beyond {same} tokens otherwise, and with them the shorter ones in a batch (its "
            f"rotary embedding or its window changes); the longest would have {longest}. Lower {lower}, or take another model"
        )
    if positions is not None and longest > positions:
        raise ModelError(
            f"{role} {path} has {positions} positions; the longest sequence would have {longest} tokens. Lower {lower}, or take "
            "a model with more positions"
        )


def _check_rows(configs: Sequence[tuple[str, str, Any]], tokens: int) -> None:
    """A row of each embedding for every token. A policy may sample any row of its own, padding of the table too."""
    (first, path, config), *others = configs
    rows = _rows(config)
    remedy = "Resize it with model.resize_token_embeddings and save it again"
    if rows < tokens:
        raise ModelError(
            f"{first} {path}: its embedding has {rows} rows, its tokenizer {tokens} tokens; expected at least as many rows. "
            f"{remedy}"
        )
    for role, other, its in others:
        if _rows(its) < rows:
            raise ModelError(
                f"{role} {other}: its embedding has {_rows(its)} rows, that of the {first} {path} {rows}, any of which may be "
                f"sampled; expected at least as many. {remedy}"
            )


def _rows(config: Any) -> int:
    found: int = config.get_text_config().vocab_size
    return found
