"""Which models an RL run needs, by role, and how large they are."""

from __future__ import annotations

import os
from dataclasses import replace

from rlhf_dist.config import RLConfig
from rlhf_dist.models import read_config
from rlhf_dist.planning.memory import ModelSize, model_size, together
from rlhf_dist.scoring.reward_file import read_reward_file


def model_folders(config: RLConfig) -> dict[str, tuple[str, ...]]:
    """Role to the folders of its models, with the defaults filled in; a reward may need none, one or several."""
    rewards = tuple(
        os.path.join(path, member) if member != "." else path
        for path in config.reward_models
        for member in read_reward_file(path).members
    )
    critic = config.critic or (config.critic_reward.path if config.critic_reward else config.policy)
    return {
        "policy": (config.policy,),
        "reference": () if config.is_own_reference else (config.reference or config.policy,),
        **({"teacher": (config.teacher,)} if config.teacher is not None else {}),
        "reward": rewards,
        "critic": (critic,) if config.learner.critic == "model" else (),
    }


def sizes_of(config: RLConfig) -> dict[str, ModelSize]:
    """Sizes of each role's models, from their configs alone."""
    found: dict[str, ModelSize] = {}
    for role, paths in model_folders(config).items():
        kind = "value" if role in ("reward", "critic") else "policy"
        lora = config.learner.lora if role in ("policy", "critic") else None
        sizes = [model_size(read_config(path), kind=kind, lora=lora) for path in paths]
        found[role] = together(sizes) if sizes else replace(found["policy"], parameters=0)
    return found
