"""Which models a stage needs, by role, and how large they are."""

from __future__ import annotations

import os
from dataclasses import replace

from rlhf_dist.config import (
    DPOConfig,
    EvaluateConfig,
    Job,
    Lora,
    ModelShape,
    PipelineConfig,
    RewardConfig,
    RLConfig,
    SFTConfig,
)
from rlhf_dist.config.pipeline import OWN_REWARD
from rlhf_dist.models import read_config
from rlhf_dist.planning.sizes import ModelSize, model_size, together
from rlhf_dist.scoring.reward_file import read_reward_file

Folders = dict[str, tuple[str, ...]]
VALUES = ("reward", "critic", "value")
"""Roles of models that score."""


def model_folders(config: RLConfig) -> Folders:
    """Role to the folders of its models, with the defaults filled in; a reward may need none, one or several."""
    critic = config.critic or (config.critic_reward.path if config.critic_reward else config.policy)
    return {
        "policy": (config.policy,),
        "reference": () if config.is_own_reference else (config.reference or config.policy,),
        **({"teacher": (config.teacher,)} if config.teacher is not None else {}),
        "reward": _members(config.reward_models),
        "critic": (critic,) if config.learner.critic == "model" else (),
    }


def sizes_of(config: Job) -> dict[str, ModelSize]:
    """Sizes of each role's models, from their configs alone.

    Raises:
        ModelError: a model's config cannot be read.
    """
    if isinstance(config, PipelineConfig):
        return _of_pipeline(config)
    folders, lora = _folders(config)
    found: dict[str, ModelSize] = {}
    for role, paths in folders.items():
        kind = "value" if role in VALUES else "policy"
        own = lora if role in ("policy", "critic", "value") else None
        sizes = [model_size(read_config(path), kind=kind, lora=own) for path in paths]
        found[role] = together(sizes) if sizes else replace(found["policy"], parameters=0)
    return found


def _folders(config: Job) -> tuple[Folders, Lora | None]:
    """Folders by role, and the adapters that those are trained with which are trained."""
    if isinstance(config, RLConfig):
        return model_folders(config), config.learner.lora
    if isinstance(config, SFTConfig):
        return {"policy": (config.model,)}, config.lora
    if isinstance(config, DPOConfig):
        reference = {"reference": (config.reference or config.model,)} if config.needs_reference else {}
        return {"policy": (config.model,), **reference}, config.lora
    if isinstance(config, RewardConfig):
        judge = {"judge": (config.comment_judge.model,)} if config.comment_judge else {}
        sampled = {"sampled": (config.policy,)} if config.policy else {}
        return {"value": (config.model,), **sampled, **judge}, config.lora
    assert isinstance(config, EvaluateConfig)
    first = next(iter(config.policies.values()))
    models = [reward.path for reward in config.reward if reward.kind == "model"]
    # One policy generates at a time.
    largest = max(config.policies.values(), key=lambda path: model_size(read_config(path), kind="policy").parameters)
    return {"policy": (largest,), "reference": (config.reference or first,), "reward": _members(models)}, None


def _of_pipeline(config: PipelineConfig) -> dict[str, ModelSize]:
    """Those of its last stage: policy and own reward model have the shape of what it starts from."""
    shared, lora = _start(config), config.learner.lora
    policy = model_size(shared, kind="policy", lora=lora)
    trained = replace(model_size(shared, kind="value", lora=lora), adapters=policy.adapters)
    others = [path for path in config.reward_models if path != OWN_REWARD]
    rewards = [model_size(read_config(path), kind="value") for path in _members(others)]
    own = [trained] * config.reward_model.models if config.trains_reward_model else []
    return {
        "policy": policy,
        "value": trained,
        "reference": model_size(read_config(config.reference), kind="policy") if config.reference else policy,
        **({"teacher": model_size(read_config(config.teacher), kind="policy")} if config.teacher else {}),
        "reward": together([*own, *rewards]) if own or rewards else replace(policy, parameters=0),
        "critic": model_size(read_config(config.critic), kind="value", lora=lora) if config.critic else trained,
    }


def _start(config: PipelineConfig) -> object:
    return read_config(config.policy) if config.task is None else _task_model(config.model)


def _task_model(shape: ModelShape) -> object:
    """As `tasks.start_model` makes it; its vocabulary of some hundred words is not known before the data are."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=1024,
    )


def _members(paths: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Folders of all members of reward models."""
    return tuple(
        os.path.join(path, member) if member != "." else path
        for path in paths
        for member in read_reward_file(path).members
    )
