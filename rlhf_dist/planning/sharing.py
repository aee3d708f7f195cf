"""What each of those who share a card may fill of it, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_dist.config import RLJob

OWN_CARD = 0.9
"""Of a card's memory for an engine that has it to itself; the rest is for CUDA's context, graphs and NCCL."""


def engine_share(config: RLJob, gpu_bytes: float, beside: float) -> float:
    """Share of a card's memory that an engine may fill: what the config says, else nearly all that the others leave.

    Args:
        config: the run's config.
        gpu_bytes: the card's memory.
        beside: bytes that others keep there while engines generate, where they share it.
    """
    if config.rollout.gpu_memory_fraction is not None:
        return config.rollout.gpu_memory_fraction
    own = OWN_CARD * config.cluster.gpu_share
    return own if config.cluster.placement != "colocated" else max(0.0, own - beside / gpu_bytes)


@dataclass(frozen=True)
class SharedCard:
    """What an engine may take of a card on which a learner keeps its weights; bytes, but the card's own size, which it knows."""

    config: RLJob
    weights: float
    """The engine's own, of which it has a part on each of its cards."""
    beside: float
    """Of the others, while engines generate."""

    @classmethod
    def of(cls, config: RLJob, sizes: Mapping[str, Any]) -> SharedCard:
        """Of a colocated run, from its models' sizes (`planning.roles.sizes_of`)."""
        learner, width = config.learner, {"float32": 4, "bfloat16": 2}
        models = [sizes["policy"], *([sizes["critic"]] if learner.critic == "model" else [])]
        held = sum(size.parameters + size.adapters for size in models) / (
            learner.ranks if learner.zero_stage == 3 else 1
        )
        scorers = sum(config.scoring_workers.values())
        scored = max((sizes[role].parameters for role in config.scoring_workers), default=0) * -(
            -scorers // learner.ranks
        )
        weights = sizes["policy"].parameters * width[config.wire_dtype]
        version = weights if config.weights.transport == "cuda_ipc" else 0  # which the rank holds for the engine
        beside = (held + scored) * width[learner.dtype] + version
        return cls(config, weights / config.rollout.tensor_parallel, beside)

    def engine_options(self, gpu_bytes: float) -> dict[str, Any]:
        """vLLM's: with its cache told, what others take or give back while it starts changes nothing."""
        share = engine_share(self.config, gpu_bytes, self.beside)
        cache = max(1, int(share * gpu_bytes - self.weights))
        return {"gpu_memory_utilization": share, "kv_cache_memory_bytes": cache}
