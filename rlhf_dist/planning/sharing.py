"""What each of those who share a card may fill of it, and when."""

from __future__ import annotations

from rlhf_dist.config import RLConfig

OWN_CARD = 0.9
"""Of a card's memory for an engine that has it to itself; the rest is for CUDA's context, graphs and NCCL."""


def engine_share(config: RLConfig, gpu_bytes: float, beside: float) -> float:
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
