"""Which settings a resumed run may change. What is not listed here takes effect from the iteration that it goes on with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rlhf_dist.config import Job, PPOConfig, flat
from rlhf_dist.errors import ConfigError

LEARNT_FROM = "what the checkpoint has learnt from"
ORDER = "the order of prompts and samples follows from it"
STEPS = "the learning rate's schedule counts optimiser steps by it"
LAYOUT = "the optimiser's state is laid out by it"
FIXED = {
    "policy": LEARNT_FROM,
    "critic": LEARNT_FROM,
    "reference": LEARNT_FROM,
    "reward": LEARNT_FROM,
    "gold_judge": LEARNT_FROM,
    "prompts": LEARNT_FROM,
    "seed": ORDER,
    "ppo.prompts_per_iteration": ORDER,
    "rollout.samples_per_prompt": ORDER,
    "ppo.epochs": STEPS,
    "ppo.mini_batches": STEPS,
    "learner.critic": LAYOUT,
    "learner.ranks": LAYOUT,
    "learner.zero_stage": LAYOUT,
    "learner.precision": LAYOUT,
    "learner.cpu_offload": LAYOUT,
}
"""Keys, each with all below it, that a run keeps, and why."""


def check_changes(before: PPOConfig, now: PPOConfig, *, where: str) -> None:
    """Refuse to go on with settings that would make it another run.

    Args:
        before: what the checkpoint was made with.
        now: what the run is to go on with.
        where: the checkpoint, for the message.

    Raises:
        ConfigError: names the first such key, what it was and what it is now.
    """
    for key, old, new in changes(before, now):
        for fixed, why in FIXED.items():
            if f"{key}.".startswith(f"{fixed}."):
                raise ConfigError(
                    f"{where}: {key} was {old!r} and is now {new!r}; a resumed run keeps it, since {why}. Expected {old!r}, or "
                    "a new run"
                )


def changes(before: Job, now: Job) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, earlier and present value of every setting that differs; a path that is spelt differently does not."""
    old, new = (flat(config.model_dump(mode="json")) for config in (before, now))
    for key in [*old, *(key for key in new if key not in old)]:
        if not _same(old.get(key), new.get(key)):
            yield key, old.get(key), new.get(key)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, str) and isinstance(new, str):
        return old == new or _place(old) == _place(new)
    return bool(old == new)


def _place(path: str) -> str:
    """What a path leads to, however it is spelt."""
    return os.path.realpath(os.path.expanduser(path))
