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


def judged_set(
    judged: Sequence[Judged],
    tokenizer: Any,
    *,
    max_tokens: int,
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
        tokenizer: the model's.
        max_tokens: longest prompt and answer.
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
        rows += [{**shared, **_tokens(one, answer, tokenizer, max_tokens, select)} for answer in one.answers]
    targets = {name: [row[name] for row in rows] for name in ("unit", "kind", "label", "margin", "weight")}
    table = example_table([row["tokens"] for row in rows], [row["selected"] for row in rows], targets)
    return ExampleSet(table, units, [1.0] * len(units))


def _tokens(one: Judged, answer: str, tokenizer: Any, max_tokens: int, select: str) -> dict[str, Any]:
    prompt = prompt_tokens(one.where, one.prompt, tokenizer)[1]
    tokens = prompt + answer_tokens(answer, tokenizer)
    if len(tokens) > max_tokens:
        raise DataError(
            f"{one.where}: prompt and answer have {len(tokens)} tokens; expected at most {max_tokens} (max_tokens). Raise the "
            "limit or leave the row out: it is never cut silently"
        )
    start, stop = len(prompt), len(tokens)
    positions = {"last": range(stop - 1, stop), "answer": range(start, stop), "before": range(start - 1, stop - 1)}
    return {"tokens": tokens, "selected": positions[select]}
