"""What a folder's model is for: a head that gives tokens, or one that gives scores."""

from __future__ import annotations

from typing import Any

from rlhf_dist.errors import ModelError


def check_role(role: str, path: str, config: Any) -> None:
    """Refuse a model whose head would be random in its role.

    Raises:
        ModelError: names role and folder.
    """
    kind = (config.architectures or ["model"])[0]
    if is_classifier(config) and role in ("policy", "reference", "judge"):
        raise ModelError(
            f"{role} {path} holds a {kind}, whose head gives scores; expected a causal language model, since the head that gives "
            "tokens would be random"
        )
    if not is_classifier(config) and role == "reward":
        raise ModelError(
            f"{role} {path} holds a {kind}, which has no head for rewards; expected a trained reward model (sequence "
            "classification), as `rlhf-dist reward` writes"
        )


def is_classifier(config: Any) -> bool:
    """Whether a folder's model gives scores instead of tokens."""
    return any(name.endswith(("ForSequenceClassification", "ForRewardModel")) for name in config.architectures or [])
