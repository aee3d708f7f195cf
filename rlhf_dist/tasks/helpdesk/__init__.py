"""The embedded demo task: a help desk whose answers should be kind, complete, correct and safe.

Customers' messages come from a grammar, demonstrations and preferences from simulated people of mixed diligence, and a
gold judge knows what a good answer is. Everything is deterministic and made from the train prompts only, except
`held_out_prompts`.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf_dist.errors import DataError
from rlhf_dist.files import write_json_lines, written_aside
from rlhf_dist.tasks.helpdesk.annotators import demonstrations, preferences
from rlhf_dist.tasks.helpdesk.gold import explain, gold_score
from rlhf_dist.tasks.helpdesk.grammar import held_out_prompts, split, train_prompts
from rlhf_dist.tasks.helpdesk.opinions import RATING_PROMPT, RATINGS, comments, ratings, scores
from rlhf_dist.tasks.helpdesk.tokenizer import build_tokenizer

__all__ = [
    "RATINGS",
    "RATING_PROMPT",
    "Paths",
    "Sizes",
    "build_tokenizer",
    "comments",
    "demonstrations",
    "explain",
    "gold_score",
    "held_out_prompts",
    "preferences",
    "ratings",
    "scores",
    "split",
    "train_prompts",
    "write",
]


RATINGS_PER_COMMENT = 2
"""Rated comments for the judge, by others than those that it will read."""


@dataclass(frozen=True)
class Sizes:
    """How many rows `write` puts into each file."""

    prompts: int = 4096
    held_out: int = 256
    demonstrations: int = 4096
    preferences: int = 8192
    scores: int = 0
    comments: int = 0


@dataclass(frozen=True)
class Paths:
    """Where `write` put the task."""

    prompts: Path
    held_out: Path
    demonstrations: Path
    preferences: Path
    scores: Path
    comments: Path
    ratings: Path
    """Comments with ratings, as demonstrations for a comment judge."""
    tokenizer: Path


def write(folder: Path, *, sizes: Sizes, seed: int) -> Paths:
    """Write the task's JSON-lines files and its tokenizer into a folder (made if need be).

    Raises:
        DataError: a size is below 1, or above the number of prompts that the grammar has.
    """
    train, held_out = split()
    for name, size, most in (
        ("prompts", sizes.prompts, len(train)),
        ("held_out", sizes.held_out, len(held_out)),
        ("demonstrations", sizes.demonstrations, None),
    ):
        if size < 1 or (most is not None and size > most):
            raise DataError(f"help desk: {name} is {size}, expected 1 to {most or 'any number'}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = Paths(
        prompts=folder / "prompts.jsonl",
        held_out=folder / "held_out.jsonl",
        demonstrations=folder / "demonstrations.jsonl",
        preferences=folder / "preferences.jsonl",
        scores=folder / "scores.jsonl",
        comments=folder / "comments.jsonl",
        ratings=folder / "ratings.jsonl",
        tokenizer=folder / "tokenizer",
    )
    write_json_lines(paths.prompts, ({"prompt": prompt} for prompt in train[: sizes.prompts]))
    write_json_lines(paths.held_out, ({"prompt": prompt} for prompt in held_out[: sizes.held_out]))
    write_json_lines(paths.demonstrations, demonstrations(sizes.demonstrations, seed))
    write_json_lines(paths.preferences, preferences(sizes.preferences, seed))
    write_json_lines(paths.scores, scores(sizes.scores, seed))
    write_json_lines(paths.comments, comments(sizes.comments, seed))
    write_json_lines(paths.ratings, ratings(RATINGS_PER_COMMENT * sizes.comments, seed))
    with written_aside(paths.tokenizer) as aside:
        build_tokenizer().save_pretrained(aside)
    return paths
