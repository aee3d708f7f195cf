"""Comments in plain language become ratings: a language model says how likely each rating is, and we take the mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_dist.config import CommentJudge
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.templates import spoken
from rlhf_dist.errors import ConfigError


@dataclass(frozen=True)
class Rated:
    """Comments with what the judge read from them."""

    judged: list[Judged]
    probabilities: list[list[float]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is stored: each comment with the judge's distribution over ratings and the label made of it."""
        for one, found in zip(self.judged, self.probabilities, strict=True):
            yield {
                "prompt": one.prompt,
                "answer": one.answers[0],
                "comment": one.comment,
                "annotator": one.annotator,
                "rating_probabilities": [round(p, 6) for p in found],
                "label": round(one.label, 6),
            }


@dataclass(frozen=True)
class Asked:
    """What the judge is asked: prompts, and the rating tokens that may follow."""

    comments: list[Judged]
    prompts: list[list[int]]
    choices: list[int]

    def read(self, probabilities: Sequence[Sequence[float]]) -> Rated:
        """Turn the judge's probabilities into labels: the expected rating, 0 for the worst and 1 for the best."""
        judged = [
            replace(one, label=expected_rating(found)) for one, found in zip(self.comments, probabilities, strict=True)
        ]
        return Rated(judged, [list(found) for found in probabilities])


def expected_rating(probabilities: Sequence[float]) -> float:
    """Mean of ratings from worst to best at equal distances, 0 to 1."""
    last = len(probabilities) - 1
    return sum(rating * p for rating, p in enumerate(probabilities)) / last / sum(probabilities)


def rating_tokens(judge: CommentJudge, tokenizer: Any) -> list[int]:
    """The token of each rating.

    Raises:
        ConfigError: a rating is not one token of the judge, or two are the same.
    """
    found = [tokenizer(rating, add_special_tokens=False)["input_ids"] for rating in judge.ratings]
    for rating, tokens in zip(judge.ratings, found, strict=True):
        if len(tokens) != 1:
            raise ConfigError(
                f"comment_judge.ratings: {rating!r} is {len(tokens)} tokens of {judge.model}; expected one"
            )
    ids = [tokens[0] for tokens in found]
    if len(set(ids)) < len(ids):
        raise ConfigError(
            f"comment_judge.ratings: two of {list(judge.ratings)} are the same token; expected different ones"
        )
    return ids


def rate_comments(comments: Sequence[Judged], judge: CommentJudge, tokenizer: Any) -> Asked:
    """The judge's prompt for each comment."""
    prompts = []
    encoder = Encoder.of(tokenizer)
    for one in comments:
        asked = one.prompt if isinstance(one.prompt, str) else spoken(one.prompt)
        # Not str.format: braces in people's texts are only braces.
        parts = {"{prompt}": asked.strip(), "{answer}": one.answers[0].strip(), "{comment}": one.comment.strip()}
        prompts.append(encoder.prompt(one.where, filled(judge.prompt, parts))[1])
    return Asked(list(comments), prompts, rating_tokens(judge, tokenizer))


def filled(template: str, parts: dict[str, str]) -> str:
    """A template with its places filled in one pass, so that nothing in a filled-in text is taken for a place."""
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template)
