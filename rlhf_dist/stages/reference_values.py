"""V* of every prompt that a run will train on, from answers of the reference: made once, before the first update (A*-PO).

The answers go through the run's own engines, which then hold the policy as it starts, and its own scorers; what comes out is
`reference_values.json`, with which a run goes on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rlhf_dist.algorithms.baselines import soft_maximum
from rlhf_dist.config import RLConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import DataError
from rlhf_dist.files import as_exact_json, parsed, write_text
from rlhf_dist.gathering import read, scores_of, submit, take
from rlhf_dist.parts import Parts
from rlhf_dist.records import PromptTask

VALUES = "reference_values.json"
BEFORE = -2
"""The iteration under which these samples are seeded."""


def reference_values(
    parts: Parts, prompts: PromptSampler, config: RLConfig, run_dir: Path, *, iteration: int
) -> dict[int, float] | None:
    """V* by prompt id, of all prompts of the run; None where no baseline asks for it.

    Args:
        parts: the running system; before the first update its engines hold the reference.
        prompts: the run's.
        config: its settings.
        run_dir: its folder.
        iteration: where the run begins.

    Raises:
        DataError: the run goes on, and the file is gone.
    """
    if config.algorithm.baseline != "optimal_value":
        return None
    file = run_dir / VALUES
    if file.exists():
        return {int(prompt): float(value) for prompt, value in parsed(file.read_bytes(), str(file)).items()}
    if iteration:
        raise DataError(
            f"{file}: missing; a run goes on with the V* that it began with. Expected the file, or a new run"
        )
    found: dict[int, float] = {}
    for tasks in _parts_of(prompts, config):
        found |= _values(parts, tasks, config)
    write_text(file, as_exact_json({str(prompt): value for prompt, value in found.items()}, VALUES))
    return found


def _parts_of(prompts: PromptSampler, config: RLConfig) -> Iterator[list[PromptTask]]:
    """Every prompt of the run once, with the reference's samples asked of it, as many at a time as the store holds."""
    samples = config.algorithm.reference_samples
    used = {task.prompt_id: task for number in range(config.rl.iterations) for task in prompts.batch(number)}
    tasks = [PromptTask(BEFORE, task.prompt_id, task.tokens, samples) for task in used.values()]
    size = max(1, config.most_rows // samples)
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]


def _values(parts: Parts, tasks: Sequence[PromptTask], config: RLConfig) -> dict[int, float]:
    submit(parts, tasks, config, further=True)
    rows = take(parts, BEFORE, config)
    scores = scores_of(read(parts, rows, timeout_s=config.timeouts.call), config)
    parts.watch.one(
        "store", parts.store.consume.remote(BEFORE), timeout_s=config.timeouts.call, doing="freeing a batch"
    )
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        by_prompt[row.key.prompt_id].append(score)
    tau = config.algorithm.tau
    return {prompt: soft_maximum(torch.tensor(each), tau=tau) for prompt, each in by_prompt.items()}
