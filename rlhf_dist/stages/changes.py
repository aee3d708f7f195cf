"""Which settings a resumed run may change. What is not listed here takes effect from the step that it goes on with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_dist.config import Job, flat
from rlhf_dist.errors import ConfigError

LEARNT_FROM = "what the checkpoint has learnt from"
ORDER = "the order of prompts and samples follows from it"
STEPS = "the learning rate's schedule counts optimiser steps by it"
LAYOUT = "the optimiser's state is of those parameters"
FIXED = {
    "policy": LEARNT_FROM,
    "critic": LEARNT_FROM,
    "reference": LEARNT_FROM,
    "teacher": LEARNT_FROM,
    "reward": LEARNT_FROM,
    "gold_judge": LEARNT_FROM,
    "prompts": LEARNT_FROM,
    "seed": ORDER,
    "rl.prompts_per_iteration": ORDER,
    "rollout.samples_per_prompt": ORDER,
    "rl.epochs": STEPS,
    "rl.mini_batches": STEPS,
    "learner.critic": LAYOUT,
    "learner.lora": LAYOUT,
}
"""Keys, each with all below it, that an RL run keeps, and why."""
MEMBERS = "the members of an ensemble are alike"
SUPERVISED = {
    "seed": ORDER,
    "model": LEARNT_FROM,
    "reference": LEARNT_FROM,
    "data": LEARNT_FROM,
    "held_out": LEARNT_FROM,
    "max_tokens": LEARNT_FROM,
    "too_long": LEARNT_FROM,
    "aggregate": LEARNT_FROM,
    "comment_judge": LEARNT_FROM,
    "scores": LEARNT_FROM,
    "batch_size": ORDER,
    "epochs": STEPS,
    "lora": LAYOUT,
    "heads": LAYOUT,
    **dict.fromkeys(("models", "policy", "prompts", "normalise_on"), MEMBERS),
    **{f"rollout.{key}": MEMBERS for key in ("max_new_tokens", "temperature", "top_p", "top_k", "stop")},
}
"""The same of the stages that learn from data."""


def check_changes(before: Job, now: Job, *, where: str, kept: Mapping[str, str] = FIXED) -> None:
    """Refuse to go on with settings that would make it another run.

    Args:
        before: what the checkpoint was made with.
        now: what the run is to go on with.
        where: the checkpoint, for the message.
        kept: keys that such a run keeps, and why.

    Raises:
        ConfigError: names the first such key, what it was and what it is now.
    """
    for key, old, new in changes(before, now):
        for fixed, why in kept.items():
            if f"{key}.".startswith(f"{fixed}."):
                raise ConfigError(
                    f"{where}: {key} was {old!r} and is now {new!r}; a resumed run keeps it, since {why}. Expected {old!r}, or "
                    "a new run"
                )


def changes(before: Job, now: Job) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, earlier and present value of every setting that differs; a path that is spelt differently does not."""
    old, new = (flat(config.model_dump(mode="json")) for config in (before, now))
    started_in = _started_in(before, now)
    for key in [*old, *(key for key in new if key not in old)]:
        if not _same(old.get(key), new.get(key), started_in):
            yield key, old.get(key), new.get(key)


def _started_in(before: Job, now: Job) -> str:
    """The folder that relative paths of the earlier config count from: both name the same run folder."""
    here, then = os.path.abspath(now.run_dir), os.path.normpath(before.run_dir)
    return here.removesuffix(then) if here.endswith(os.sep + then) else os.getcwd()


def _same(old: Any, new: Any, started_in: str) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key], started_in) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same(one, other, started_in) for one, other in zip(old, new, strict=True))
    if isinstance(old, str) and isinstance(new, str) and "\0" not in old + new:
        return old == new or _place(new) in (_place(old), _place(os.path.join(started_in, old)))
    return bool(old == new)


def _place(path: str) -> str:
    """What a path leads to, however it is spelt."""
    return os.path.realpath(os.path.expanduser(path))
