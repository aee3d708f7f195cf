"""Which actors a run starts, what each asks of Ray, and an estimate of the memory each takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlhf_dist.config import PPOConfig

MIB = 2**20
ACTIVATION_FACTOR = 18
"""Live activations per token, layer and hidden unit, in elements (about 34 bytes in half precision without attention
scores, which fused kernels never store: Korthikanti et al. 2022, arXiv:2205.05198, table 2)."""


@dataclass(frozen=True)
class ActorPlan:
    """One kind of actor."""

    role: str
    count: int
    cpus: int
    gpus: float
    memory: dict[str, float]
    """What fills its memory, in bytes."""


@dataclass(frozen=True)
class ModelSize:
    """Counts that memory depends on."""

    parameters: int
    layers: int
    hidden: int
    kv_elements: int
    """Key and value elements per token, all layers."""
    vocabulary: int


def model_size(config: Any, *, kind: str) -> ModelSize:
    """Count a model's parameters from its Hugging Face config without allocating them.

    Args:
        config: the model's config.
        kind: `policy` or `value`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "value":
        config.num_labels = 1
    made: Any = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = made.from_config(config)
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_elements=2 * config.num_hidden_layers * heads * head_size,
        vocabulary=config.vocab_size,
    )


def place(config: PPOConfig, sizes: dict[str, ModelSize], *, gpus: bool) -> list[ActorPlan]:
    """Every kind of actor of a PPO run.

    Args:
        config: the run's config.
        sizes: of `policy`, `reference`, `reward` and `critic`.
        gpus: whether the cluster has GPUs; without, CPUs do everything.
    """
    width = 2 if config.learner.precision == "bf16" else 4
    share = config.cluster.gpu_share if gpus else 0.0
    policy = sizes["policy"]
    kv = config.max_sequence * min(config.rollout.max_concurrent, config.batch_samples) * policy.kv_elements * width
    engine = {"weights": policy.parameters * width / config.rollout.tensor_parallel, "KV cache": float(kv)}
    if not gpus and config.rollout.engine == "vllm":
        engine["KV cache"] = config.rollout.kv_cache_gib * 2**30

    def scorer(role: str) -> dict[str, float]:
        tokens = config.scoring.batch_tokens
        return {"weights": sizes[role].parameters * width, "activations": 4.0 * tokens * sizes[role].hidden * width}

    return [
        ActorPlan("store", 1, 0, 0.0, {"index": 64.0 * MIB}),
        ActorPlan("rollout", config.rollout.workers, 1, share * config.rollout.tensor_parallel, engine),
        ActorPlan("reward", config.scoring.reward_workers, 1, share, scorer("reward")),
        ActorPlan("reference", config.scoring.reference_workers, 1, share, scorer("reference")),
        ActorPlan("learner", config.learner.ranks, 1, share, learner_memory(config, sizes)),
    ]


def learner_memory(config: PPOConfig, sizes: dict[str, ModelSize]) -> dict[str, float]:
    """Bytes on one learner rank (Rajbhandari et al. 2020, arXiv:1910.02054, section 3: what each ZeRO stage divides)."""
    learner = config.learner
    trained = [sizes["policy"]] + ([sizes["critic"]] if learner.critic == "model" else [])
    parameters = sum(size.parameters for size in trained)
    half = learner.precision == "bf16"
    ranks, stage = learner.ranks, learner.zero_stage
    width = 2 if half else 4
    # Adam's two moments, and the fp32 master copy where training is in half precision.
    optimiser = parameters * (12 if half else 8) / (ranks if stage >= 1 else 1)
    layers = 1 if learner.gradient_checkpointing else max(size.layers for size in trained)
    tokens = learner.micro_batch_tokens
    logits = min(256 * MIB, 4 * tokens * sizes["policy"].vocabulary)
    return {
        "weights": parameters * width / (ranks if stage == 3 else 1),
        "gradients": parameters * width / (ranks if stage >= 2 else 1),
        "optimiser (host)" if learner.cpu_offload else "optimiser": optimiser,
        "activations": float(ACTIVATION_FACTOR * tokens * layers * max(size.hidden for size in trained) * width),
        "logits": 3.0 * logits,
    }


def totals(plans: list[ActorPlan]) -> tuple[int, float]:
    """CPU slots and GPUs that all actors ask for together."""
    return sum(plan.cpus * plan.count for plan in plans), math.fsum(plan.gpus * plan.count for plan in plans)
