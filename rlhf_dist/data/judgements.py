"""Judgements as the learner reads them: token sequences and targets, one unit per judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.prompts import answer_tokens, prompt_tokens
from rlhf_dist.errors import DataError
from rlhf_dist.progress import counted

KINDS = {"scores": 0.0, "comparisons": 1.0, "rankings": 2.0, "comments": 3.0}
"""Code of each kind of feedback in the examples' column `kind`."""


class JudgedTokens:
    """Judged answers as token ids, each tokenised once however many sets it is part of."""

    def __init__(self, tokenizer: Any, *, max_tokens: int) -> None:
        """Take the model's tokenizer, and the longest prompt and answer."""
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def __call__(self, one: Judged, answer: str) -> tuple[list[int], int]:
        """Prompt and answer as token ids, and how many of them are the prompt's.

        Raises:
            DataError: they are too long; names file and line.
        """
        key = repr(one.prompt), answer
        if key not in self._known:
            self._known[key] = self._tokenise(one, answer)
        return self._known[key]

    def _tokenise(self, one: Judged, answer: str) -> tuple[list[int], int]:
        prompt = prompt_tokens(one.where, one.prompt, self._tokenizer)[1]
        tokens = prompt + answer_tokens(answer, self._tokenizer)
        if len(tokens) > self._max_tokens:
            raise DataError(
                f"{one.where}: prompt and answer have {len(tokens)} tokens; expected at most {self._max_tokens} (max_tokens). "
                "Raise the limit or leave the row out: it is never cut silently"
            )
        return tokens, len(prompt)


def judged_set(
    judged: Sequence[Judged],
    tokens_of: JudgedTokens,
    *,
    select: Literal["last", "answer", "before"],
    coefficients: Mapping[str, float] | None = None,
    heads: int = 1,
    seed: int = 0,
) -> ExampleSet:
    """Tokenise judgements, each answer a row, with the targets that losses need.

    Columns: `unit`, `kind` (`KINDS`), `label`, `margin`, `weight` (of the unit in the loss, per head).

    The weight of a unit is coefficient x units in all over units of its kind, so that the mean over all units is the sum of
    the kinds' means, each times its coefficient, whatever a batch holds. With several heads each head sees a resample:
    Poisson(1) times the weight (the online bootstrap, Oza and Russell 2001).

    Args:
        judged: what people said; comments with their rating.
        tokens_of: their prompts and answers as token ids.
        select: positions whose output is wanted: the last token, the answer's tokens, or those before each of them, whose
            outputs predict it.
        coefficients: of the kinds, default 1; a kind of coefficient 0 is left out.
        heads: of the ensemble.
        seed: of the resampling.

    Raises:
        DataError: an answer with its prompt is too long; names file and line.
    """
    wanted = [one for one in judged if (coefficients or {}).get(one.kind, 1.0) > 0]
    counts = Counter(one.kind for one in wanted)
    draws = np.random.default_rng([seed, heads]).poisson(1.0, (len(wanted), heads)) if heads > 1 else None
    rows: list[dict[str, Any]] = []
    units = []
    for number, one in enumerate(counted(wanted, "tokenising judgements")):
        weight = (coefficients or {}).get(one.kind, 1.0) * len(wanted) / counts[one.kind]
        shared = {
            "unit": number,
            "kind": KINDS[one.kind],
            "label": one.label,
            "margin": one.margin,
            "weight": weight * (draws[number] if draws is not None else np.ones(heads)),
        }
        units.append(list(range(len(rows), len(rows) + len(one.answers))))
        rows += [{**shared, **_row(*tokens_of(one, answer), select)} for answer in one.answers]
    targets = {name: [row[name] for row in rows] for name in ("unit", "kind", "label", "margin", "weight")}
    table = example_table([row["tokens"] for row in rows], [row["selected"] for row in rows], targets)
    return ExampleSet(table, units, [1.0] * len(units))


def _row(tokens: list[int], start: int, select: str) -> dict[str, Any]:
    stop = len(tokens)
    positions = {"last": range(stop - 1, stop), "answer": range(start, stop), "before": range(start - 1, stop - 1)}
    return {"tokens": tokens, "selected": positions[select]}
