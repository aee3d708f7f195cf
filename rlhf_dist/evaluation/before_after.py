"""A policy before and after training, on held-out prompts, by a gold rule that training never sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.evaluation.length_bias import LengthBias, length_bias
from rlhf_dist.files import shown
from rlhf_dist.records import Prompt
from rlhf_dist.store.row import rows_of


@dataclass(frozen=True)
class Comparison:
    """One held-out prompt answered by the policy before and after training."""

    prompt: str
    """As people read it."""
    before: str
    after: str
    gold_before: float | None
    gold_after: float | None


@dataclass(frozen=True)
class Verdict:
    """All comparisons, and the shares that the judge decided."""

    comparisons: list[Comparison]
    win_rate: float | None
    """Of the prompts with a judgement of both answers, the share where the one after training scores strictly higher."""
    tie_rate: float | None
    gold_before: float | None
    gold_after: float | None
    length_bias: LengthBias | None = None
    """What the wins owe to length, in tokens."""
    problem: str | None = None
    """On how many answers the judge failed, and how on the first of them."""


def compare(
    prompts: Sequence[Prompt],
    before: pa.RecordBatch | None,
    after: pa.RecordBatch | None,
    tokenizer: Any,
    judge: Callable[[Prompt, str], float] | None,
) -> Verdict:
    """Decode both policies' answers and let the judge, if any, score them; where it fails, there is no score, and it is said."""
    if before is None or after is None:
        return Verdict([], None, None, None, None)
    comparisons: list[Comparison] = []
    failures: list[str] = []
    lengths: list[tuple[int, int]] = []
    for prompt, *rows in zip(prompts, rows_of(before), rows_of(after), strict=True):
        texts = [tokenizer.decode(row.answer, skip_special_tokens=True) for row in rows]
        gold = [_judged(judge, prompt, text, failures) for text in texts]
        comparisons.append(Comparison(prompt.shown, texts[0], texts[1], gold[0], gold[1]))
        lengths.append((int(rows[0].sampled.sum()), int(rows[1].sampled.sum())))
    problem = (
        f"the gold judge failed on {len(failures)} of {2 * len(comparisons)} answers, which have no gold score: {failures[0]}"
        if failures
        else None
    )
    return _verdict(comparisons, lengths, problem)


def _verdict(comparisons: list[Comparison], lengths: Sequence[tuple[int, int]], problem: str | None) -> Verdict:
    judged = [
        (c.gold_before, c.gold_after, *own)
        for c, own in zip(comparisons, lengths, strict=True)
        if c.gold_before is not None and c.gold_after is not None
    ]
    if not judged:
        return Verdict(comparisons, None, None, None, None, problem=problem)
    before, after, lengths_before, lengths_after = (np.array(each) for each in zip(*judged, strict=True))
    return Verdict(
        comparisons,
        win_rate=float(np.mean(after > before)),
        tie_rate=float(np.mean(after == before)),
        gold_before=float(np.mean(before)),
        gold_after=float(np.mean(after)),
        length_bias=length_bias(lengths_after, lengths_before, (np.sign(after - before) + 1) / 2),
        problem=problem,
    )


def _judged(
    judge: Callable[[Prompt, str], float] | None, prompt: Prompt, answer: str, failures: list[str]
) -> float | None:
    """What the judge says, None where it says no finite number: that is neither better nor worse than another answer.

    A judge that fails, or ends the process, does so after hours of training, none of which it may cost: the failure is added to
    the others.
    """
    if judge is None:
        return None
    try:
        said = float(judge(prompt, answer))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - other people's code may fail in any way
        failures.append(f"{type(error).__name__}: {error}, on prompt {shown(prompt.shown)} and answer {shown(answer)}")
        return None
    return said if math.isfinite(said) else None
