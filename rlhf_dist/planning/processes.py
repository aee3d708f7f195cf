"""What processes take before they hold any model: measured, not derived."""

from __future__ import annotations

from rlhf_dist.planning.machine import GIB, MIB

CONTEXT_BYTES = 0.6 * GIB
"""What a CUDA context with torch and NCCL takes of a GPU, per process (NVIDIA's own figures for H100; never measured here)."""
GRAPHS_BYTES = 1.5 * GIB
"""vLLM's CUDA graphs of one engine: 1 to 2 GiB by its own logs, of dense models from 1 B to 70 B."""
ASLEEP_BYTES = 2.5 * GIB
"""What an engine that sleeps leaves on its GPU: context, graphs, its libraries' workspaces (2 to 3 GiB by vLLM's documents)."""

HOST_BYTES = {
    "learner": 690 * MIB,
    "rollout": 810 * MIB,
    "generator": 810 * MIB,
    "transformers": 620 * MIB,
    "reward": 570 * MIB,
    "reference": 590 * MIB,
    "teacher": 590 * MIB,
    "store": 390 * MIB,
    "driver": 630 * MIB,
}
"""Resident memory of a process by role with a model of 0.2 M parameters: Python, torch, transformers, Ray's client, and what the
role adds, DeepSpeed or vLLM (`benchmarks/memory.py`, 2026-11-28, Python 3.11, torch 2.13 for CPUs). `transformers`: an engine of
that kind."""
