"""Embedded tasks: each writes its data and brings a tokenizer and a gold judge, so that everything runs offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_dist.config import EmbeddedTask, Feedback
from rlhf_dist.errors import ConfigError
from rlhf_dist.tasks import helpdesk
from rlhf_dist.tasks.scenarios import SCENARIOS
from rlhf_dist.tasks.word_tokenizer import word_tokenizer


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
    ratings: str | None = None
    """Rated comments, from which the task's own comment judge learns; None where there are no comments."""
    judge: dict[str, Any] = field(default_factory=dict)
    """How that judge is asked: `prompt` and `ratings` of `config.CommentJudge`."""


def write_task(task: EmbeddedTask, folder: Path, *, held_out: int, seed: int) -> TaskData:
    """Write a task's files into a folder (made if need be); equal arguments give equal files.

    Args:
        task: which task, and how much of each kind of data.
        folder: where to.
        held_out: prompts for evaluation.
        seed: of the simulated people.

    Raises:
        ConfigError: a kind of feedback is asked for that the task does not have.
        DataError: more is asked for than the task has.
    """
    if task.name == "dialogue":
        return _dialogue(task, folder, held_out=held_out, seed=seed)
    if task.scores or task.comments:
        raise ConfigError(f"task.scores and task.comments: {task.name} has comparisons only; expected 0")
    scenario = SCENARIOS[task.name]
    sizes = {"prompts": task.prompts, "demonstrations": task.demonstrations, "comparisons": task.comparisons}
    scenario.write(folder, held_out=held_out, seed=seed, **sizes)
    return TaskData(
        prompts=str(folder / "prompts.jsonl"),
        held_out=str(folder / "held_out.jsonl"),
        demonstrations=str(folder / "demonstrations.jsonl"),
        feedback=(Feedback(path=str(folder / "preferences.jsonl")),) if task.comparisons else (),
        gold_judge=f"rlhf_dist.tasks.scenarios:{task.name}",
        tokenizer=word_tokenizer(scenario.texts()),
    )


def _dialogue(task: EmbeddedTask, folder: Path, *, held_out: int, seed: int) -> TaskData:
    sizes = helpdesk.Sizes(
        prompts=task.prompts,
        held_out=held_out,
        demonstrations=task.demonstrations,
        preferences=task.comparisons,
        scores=task.scores,
        comments=task.comments,
    )
    written = helpdesk.write(folder, sizes=sizes, seed=seed)
    kinds = (
        ("comparisons", written.preferences, task.comparisons),
        ("scores", written.scores, task.scores),
        ("comments", written.comments, task.comments),
    )
    return TaskData(
        prompts=str(written.prompts),
        held_out=str(written.held_out),
        demonstrations=str(written.demonstrations),
        feedback=tuple(Feedback.model_validate({"path": str(path), "kind": kind}) for kind, path, n in kinds if n),
        gold_judge="rlhf_dist.tasks.helpdesk:gold_score",
        tokenizer=helpdesk.build_tokenizer(),
        ratings=str(written.ratings) if task.comments else None,
        judge={"prompt": helpdesk.RATING_PROMPT, "ratings": helpdesk.RATINGS},
    )
