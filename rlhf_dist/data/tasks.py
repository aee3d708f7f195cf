"""Embedded tasks: each writes its data and brings a tokenizer and a gold judge, so that everything runs offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.config import Feedback, Task
from rlhf_dist.data import helpdesk


@dataclass(frozen=True)
class TaskData:
    """What a task wrote, and how it is judged."""

    prompts: str
    held_out: str
    demonstrations: str
    feedback: tuple[Feedback, ...]
    gold_judge: str
    """`package.module:function` of (prompt, answer)."""
    tokenizer: Any


def write_task(task: Task, folder: Path, *, held_out: int, seed: int) -> TaskData:
    """Write a task's files into a folder (made if need be); equal arguments give equal files.

    Args:
        task: which task, and how much of each kind of data.
        folder: where to.
        held_out: prompts for evaluation.
        seed: of the simulated people.

    Raises:
        DataError: more is asked for than the task has.
    """
    sizes = helpdesk.Sizes(
        prompts=task.prompts, held_out=held_out, demonstrations=task.demonstrations, preferences=task.comparisons
    )
    written = helpdesk.write(folder, sizes=sizes, seed=seed)
    return TaskData(
        prompts=str(written.prompts),
        held_out=str(written.held_out),
        demonstrations=str(written.demonstrations),
        feedback=(Feedback(path=str(written.preferences)),),
        gold_judge="rlhf_dist.data.helpdesk:gold_score",
        tokenizer=helpdesk.build_tokenizer(),
    )
