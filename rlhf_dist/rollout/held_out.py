"""Answers of the policy to held-out prompts, before and after training."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.records import Prompt, PromptTask
from rlhf_dist.rollout.generator import answers

EVALUATION = -1
"""The iteration under which their samples are seeded."""


def held_out_answers(rollouts: Fleet, prompts: Sequence[Prompt], *, timeout_s: float) -> pa.RecordBatch | None:
    """One answer of the newest policy to each prompt, seeded alike before and after training; None without prompts."""
    tasks = [PromptTask(EVALUATION, prompt.id, prompt.tokens, 1) for prompt in prompts]
    return answers(rollouts, tasks, timeout_s=timeout_s)
