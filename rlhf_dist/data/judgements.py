"""Judgements as the learner reads them: token sequences and targets, one unit per judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from rlhf_dist.config import TooLong
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.lengths import Lengths
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown
from rlhf_dist.progress import counted

KINDS = {"scores": 0.0, "comparisons": 1.0, "rankings": 2.0, "comments": 3.0}
"""Code of each kind of feedback in the examples' column `kind`."""


class JudgedTokens:
    """Judged answers as token ids, each tokenised once however many sets it is part of."""

    def __init__(self, tokenizer: Any, *, max_tokens: int, too_long: TooLong = "refuse") -> None:
        """Take the model's tokenizer or an `Encoder` of it, the longest prompt and answer, and what becomes of longer ones."""
        self._encoder, self._max_tokens, self._too_long = Encoder.of(tokenizer), max_tokens, too_long
        self._known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def __call__(self, one: Judged, answer: str) -> tuple[list[int], int]:
        """Prompt and answer as token ids, and how many of them are the prompt's; the prompt's beginning may be cut off.

        Raises:
            DataError: the template refuses them; names file and line.
        """
        tokens, start = self._whole(one, answer)
        excess = max(len(self._whole(one, each)[0]) for each in one.answers) - self._max_tokens
        if excess <= 0:
            return tokens, start
        kept = self._encoder.words.tail(tokens[:start], max(start - excess, 1))
        return kept + tokens[start:], len(kept)

    def fitting(self, judged: Sequence[Judged]) -> list[Judged]:
        """Those that are short enough, or can be cut so; both answers of a comparison are cut alike.

        Raises:
            DataError: there are longer ones, and they are refused; names file and line of the first, and counts them.
        """
        lengths = Lengths(self._max_tokens, self._too_long, what="prompt and answer have", key="")
        kept = []
        for one in counted(judged, "tokenising judgements"):
            whole = [self._whole(one, answer) for answer in one.answers]
            _check_differ(one, [tokens for tokens, _ in whole])
            longest = max(len(tokens) for tokens, _ in whole)
            answers = max(len(tokens) - start for tokens, start in whole)
            # Without a token of the prompt there is nothing that the answer answers.
            cut = one if answers < self._max_tokens else None
            fit = lengths.fit(one.where, longest, one, partial(_given, cut))
            kept += [] if fit is None else [fit]
        lengths.close("data", self._encoder)
        return kept

    def _whole(self, one: Judged, answer: str) -> tuple[list[int], int]:
        key = repr((one.prompt, one.reading)), answer
        if key not in self._known:
            made = self._encoder.pair(one.where, one.prompt, one.messages.get(answer, answer), one.reading)
            self._known[key] = made.tokens, made.answers[-1][0]
        return self._known[key]


def _check_differ(one: Judged, whole: Sequence[list[int]]) -> None:
    """Two answers of which one is better, but which the model reads as the same, teach that it is better than itself.

    In a ranking of several they have no gradient, and the others still teach.
    """
    if one.kind != "comparisons":
        return
    for number, tokens in enumerate(whole):
        if tokens in whole[:number]:
            first, second = one.answers[whole.index(tokens)], one.answers[number]
            raise DataError(
                f"{one.where}: the answers {shown(first)} and {shown(second)} are the same tokens; expected different ones"
            )


def _given(one: Judged | None) -> Judged | None:
    return one


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
    wanted = tokens_of.fitting([one for one in judged if (coefficients or {}).get(one.kind, 1.0) > 0])
    counts = Counter(one.kind for one in wanted)
    draws = np.random.default_rng([seed, heads]).poisson(1.0, (len(wanted), heads)) if heads > 1 else None
    rows: list[dict[str, Any]] = []
    units = []
    for number, one in enumerate(wanted):
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
    return ExampleSet(table, units, [1.0] * len(units), [one.where for one in wanted])


def _row(tokens: list[int], start: int, select: str) -> dict[str, Any]:
    stop = len(tokens)
    positions = {"last": range(stop - 1, stop), "answer": range(start, stop), "before": range(start - 1, stop - 1)}
    return {"tokens": tokens, "selected": positions[select]}
