"""Models that a config names by their hub names, resolved to folders once, before anything reads them."""

from __future__ import annotations

from typing import TypeVar

from rlhf_dist.config import Job, ModelReward, Safety
from rlhf_dist.models import resolve

C = TypeVar("C", bound=Job)
MODELS = ("policy", "model", "reference", "critic", "teacher")
"""Settings that name one model, of whichever stage."""


def resolved(config: C) -> C:
    """The same settings with a folder for each model; what a run records is what the user wrote.

    Raises:
        ModelError: a model is no folder, and cannot be fetched.
    """
    found: dict[str, object] = {}
    for name in MODELS:
        path = getattr(config, name, None)
        if isinstance(path, str) and path:
            found[name] = resolve(path)
    policies = getattr(config, "policies", None)
    if policies:
        found["policies"] = {name: resolve(path) for name, path in policies.items()}
    judge = getattr(config, "comment_judge", None)
    if judge is not None:
        found["comment_judge"] = judge.model_copy(update={"model": resolve(judge.model)})
    rewards = getattr(config, "reward", None)
    if rewards:
        found["reward"] = tuple(
            each.model_copy(update={"path": resolve(each.path)}) if isinstance(each, ModelReward) else each
            for each in rewards
        )
    safety = getattr(config, "safety", None)
    if isinstance(safety, Safety) and safety.classifier:
        found["safety"] = safety.model_copy(update={"classifier": resolve(safety.classifier)})
    return config.model_copy(update=found)
