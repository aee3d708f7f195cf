"""Single answers that people find desirable or not, from comparisons and scores, and the mismatched pairs beside them (KTO)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged


def unpaired(judged: Sequence[Judged], *, desirable_above: float) -> list[Judged]:
    """Each answer by itself, as a score whose label is how likely people find it desirable.

    Of a comparison the first answer is desirable with the probability that it is preferred, the second with the remaining one; a
    tie is left out, since it says of neither that it is good or bad. A score is either.

    Args:
        judged: comparisons and scores.
        desirable_above: scores, from 0 to 1, above which an answer is desirable.
    """
    found = []
    for one in judged:
        if one.kind == "scores":
            found.append(replace(one, label=float(one.label > desirable_above)))
        elif one.label != 0.5:
            pairs = zip(one.answers, (one.label, 1 - one.label), strict=True)
            found += [replace(one, kind="scores", answers=(answer,), label=label) for answer, label in pairs]
    return found


def with_mismatched(examples: ExampleSet, *, seed: int) -> ExampleSet:
    """The same units, and for each a row with its prompt and another prompt's answer; none where there is only one prompt.

    The pairs are the same in every step, so that the reference is asked about them once. A prompt that would make such a row
    longer than the longest example lacks its beginning.

    Args:
        examples: units of one row each, in the table's order, whose selected positions are those before the answer's tokens.
        seed: of who meets whom.
    """
    tokens, selected = (examples.table.column(name).to_pylist() for name in ("tokens", "selected"))
    begins = [positions[0] + 1 for positions in selected]
    prompts = [tuple(row[:begin]) for row, begin in zip(tokens, begins, strict=True)]
    answers = [tuple(row[begin:]) for row, begin in zip(tokens, begins, strict=True)]
    others = strangers(prompts, seed=seed)
    if None in others:
        return examples
    longest = max(len(row) for row in tokens)
    made = [(prompts[own], answers[other]) for own, other in enumerate(others) if other is not None]
    made = [(prompt[-(longest - len(answer)) :], answer) for prompt, answer in made]
    pairs = example_table(
        [prompt + answer for prompt, answer in made],
        [range(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in made],
    )
    count = examples.table.num_rows
    columns = [
        pa.concat_arrays([own, pairs.column(name) if name in pairs.schema.names else own])
        for name, own in zip(examples.table.schema.names, examples.table.columns, strict=True)
    ]
    table = pa.RecordBatch.from_arrays(columns, schema=examples.table.schema)
    return replace(examples, table=table, mismatched=list(range(count, 2 * count)))


def strangers(keys: Sequence[Hashable], *, seed: int) -> list[int | None]:
    """For each the next one with another key, in a random order that goes round; None for all where all keys are the same.

    With keys that are all different everybody is met by one other.
    """
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    found: list[int | None] = [None] * len(keys)
    for place in range(2 * len(order) - 1, -1, -1):  # twice round: the last ones' may be among the first
        own, after = order[place % len(order)], order[(place + 1) % len(order)]
        found[own] = after if keys[own] != keys[after] else found[after]
    return found
