"""Which tokens end an answer, as a model's folder says, and what a folder that we write says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_dist.data.ends import Ends, added_tokens, tokenizer_ends
from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_json, shown
from rlhf_dist.models.folders import resolve
from rlhf_dist.models.tokenizers import load_tokenizer

GENERATION = "generation_config.json"


def ends_of(path: str, tokenizer: Any = None) -> Ends:
    """All that a model's files say: generation config, config, tokenizer, chat template.

    An engine stops at any of them, since a model may have been taught any; what is taught is one.

    Args:
        path: the model's folder, or its name on the hub.
        tokenizer: the folder's, if it is loaded already.

    Raises:
        ModelError: a file is unreadable.
    """
    folder = Path(resolve(path))
    config = _read(folder / "config.json")
    text_config = config.get("text_config") or {}
    if not isinstance(text_config, dict):
        raise ModelError(f"{folder / 'config.json'}: text_config is {shown(text_config)}; expected a mapping")
    known = tokenizer or load_tokenizer(str(folder))
    generation = _ids(_read(folder / GENERATION).get("eos_token_id"))
    own = [token for each in (config, text_config) for token in _ids(each.get("eos_token_id"))]
    # A config class has a default, which may be any word of this tokenizer, or none.
    added = {*added_tokens(known).values()}
    found = [*generation, *(token for token in own if token in added)]
    return tokenizer_ends(known).also(token for token in found if 0 <= token < len(known))


def eos_token_ids(path: str) -> tuple[int, ...]:
    """Token ids that end an answer."""
    return ends_of(path).ids


def write_ends(folder: Path, ids: Sequence[int]) -> None:
    """Let a saved model say itself what ends its answers, to every engine; the other keys of its generation config stay.

    Args:
        folder: of the model, which is not finished yet.
        ids: the tokens at which an engine stops.
    """
    file = folder / GENERATION
    told = _read(file) | {"eos_token_id": sorted(set(ids))}
    file.write_text(as_json(told, indent=2, sort_keys=True) + "\n")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(read, dict):
        raise ModelError(f"{file}: found {type(read).__name__}; expected a mapping")
    return read


def _ids(value: Any) -> list[int]:
    """Ids as such files give them: one, several, or none."""
    several = value if isinstance(value, list) else [value]
    return [each for each in several if isinstance(each, int) and not isinstance(each, bool)]
