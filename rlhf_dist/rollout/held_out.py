"""Answers of the policy to held-out prompts, before, during and after training."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlhf_dist.records import Prompt, PromptTask
from rlhf_dist.rollout.fleet import RolloutFleet

EVALUATION = -1
"""The iteration under which their samples are seeded."""


def answer(rollouts: RolloutFleet, prompts: Sequence[Prompt], *, timeout_s: float) -> pa.RecordBatch | None:
    """One answer of the newest policy to each prompt, seeded alike before and after training; None without prompts."""
    tasks = [PromptTask(EVALUATION, prompt.id, prompt.tokens, 1) for prompt in prompts]
    return rollouts.generate(tasks, timeout_s=timeout_s)
