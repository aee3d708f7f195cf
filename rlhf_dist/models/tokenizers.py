"""Tokenizers of model folders, and whether two of them mean the same by an id."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlhf_dist.data.ends import template_end
from rlhf_dist.errors import ModelError
from rlhf_dist.imports import import_transformers
from rlhf_dist.models.folders import resolve


def load_tokenizer(path: str, *, ends: bool = True) -> Any:
    """A model's tokenizer.

    Args:
        path: the model's folder.
        ends: whether answers are to end with its end-of-sequence token; a classifier needs none.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    import_transformers()
    from transformers import AutoTokenizer

    folder = resolve(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files from outside may be wrong in any way
        what = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ModelError(f"{path}: cannot read its tokenizer: {what}{error}") from error
    if ends and tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer has no eos_token; expected one, since answers end with it")
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of the vocabulary with its ids; equal for tokenizers that mean the same by an id."""
    return hashlib.blake2b(json.dumps(sorted(tokenizer.get_vocab().items())).encode(), digest_size=16).hexdigest()


def check_same_tokenizer(policy: str, others: dict[str, str]) -> None:
    """All models of a run must read the same token ids, and take the same one for the end of an answer.

    Args:
        policy: the policy's folder.
        others: role to folder.

    Raises:
        ModelError: names the two folders whose tokenizers differ, or whose chat templates end answers differently.
    """
    own = load_tokenizer(policy)
    expected, end = tokenizer_fingerprint(own), template_end(own)
    for role, path in others.items():
        if path == policy:
            continue
        other = load_tokenizer(path)
        its_end = template_end(other)
        if None not in (end, its_end) and end != its_end and tokenizer_fingerprint(other) == expected:
            mine, its = (own.convert_ids_to_tokens(token) for token in (end, its_end))
            raise ModelError(
                f"{role} {path} ends an assistant's turn with {its}, the policy {policy} with {mine}; expected the same chat "
                "template, since answers are taught, sampled and scored up to their end"
            )
        if tokenizer_fingerprint(other) != expected:
            raise ModelError(
                f"{role} {path} has another tokenizer than the policy {policy}; "
                "expected the same vocabulary, since token ids are passed between them"
            )
