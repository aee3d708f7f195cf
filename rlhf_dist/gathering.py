"""How an iteration gets its samples: prompts are queued, their scored answers taken, until enough of them teach something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_dist.algorithms.filters import has_signal
from rlhf_dist.config import RLConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import WaitTimeout
from rlhf_dist.learner.scores import shaped_score
from rlhf_dist.parts import Parts
from rlhf_dist.records import GREEDY
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.reader import blocks_of, read_batch
from rlhf_dist.store.row import extents_of


@dataclass(frozen=True)
class Gathered:
    """What an iteration learns from."""

    rows: Sequence[RowView]
    """In canonical order."""
    given: Mapping[int, float] = field(default_factory=dict)
    """By prompt id, the score of its greedy answer, where that is the baseline."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What was left out, where something may be."""


def gather(parts: Parts, prompts: PromptSampler, iteration: int, config: RLConfig) -> Gathered:
    """Queue an iteration's prompts, and wait for its samples.

    With `algorithm.filter_groups`, prompts all of whose answers score the same are left out, and further ones are queued in their
    place, `filter_rounds` rounds in all: then the iteration learns from those that there are, and from the first round's where
    there are none (DAPO, arXiv:2503.14476, section 3.2, which samples without a bound).

    Raises:
        WaitTimeout: the samples are not there in time; says how many rows are where.
    """
    tasks = prompts.batch(iteration)
    submit(parts, tasks, config, further=False)
    rows = take(parts, iteration, config)
    if config.algorithm.baseline == "greedy":
        return _apart(parts, rows, config)
    return _filtered(parts, prompts, iteration, rows, config) if config.algorithm.filter_groups else Gathered(rows)


def _apart(parts: Parts, rows: Sequence[RowView], config: RLConfig) -> Gathered:
    """The samples apart from the greedy answers; a prompt whose greedy answer has no score is left out."""
    greedy = [row for row in rows if row.key.sample_index == GREEDY]
    scores = scores_of(read(parts, greedy, timeout_s=config.timeouts.call), config)
    given = {row.key.prompt_id: float(score) for row, score in zip(greedy, scores, strict=True)}
    chosen = [row for row in rows if row.key.sample_index != GREEDY and row.key.prompt_id in given]
    return Gathered(chosen, given, {"critic/greedy_score/mean": float(np.mean(scores))} if given else {})


def scores_of(batch: pa.RecordBatch, config: RLConfig) -> list[float]:
    """Scores of a batch's rows as they are trained on."""
    lengths, longest = extents_of(batch).sampled.tolist(), config.rollout.max_new_tokens
    cut = [reason == "length" for reason in batch.column("finish_reason").to_pylist()]
    return [
        shaped_score(score, config.algorithm, cut=ended, length=length, longest=longest)
        for score, ended, length in zip(batch.column("score").to_pylist(), cut, lengths, strict=True)
    ]


def _filtered(parts: Parts, prompts: PromptSampler, iteration: int, first: list[RowView], config: RLConfig) -> Gathered:
    wanted, rounds, rows = config.rl.prompts_per_iteration, 1, first
    kept: dict[int, list[RowView]] = {}
    seen: set[int] = set()
    scores: list[float] = []
    while True:
        groups, own = _by_prompt(parts, rows, config)
        seen |= groups.keys()
        scores += own
        kept |= {prompt: each for prompt, (each, teaches) in groups.items() if teaches}
        missing = wanted - len(kept)
        if missing <= 0 or rounds == config.algorithm.filter_rounds:
            break
        count = min(wanted, math.ceil(missing * len(seen) / max(len(kept), 1)))
        more = prompts.others(iteration, count=count, used=seen)
        if not more:
            break
        submit(parts, more, config, further=True)
        rows, rounds = take(parts, iteration, config), rounds + 1
    chosen = [row for group in [*kept.values()][:wanted] for row in group]
    facts = {
        "filter/rounds": float(rounds),
        "filter/share_kept": len(kept) / len(seen),
        "filter/prompts": float(min(len(kept), wanted)),
        "filter/score_before/mean": float(np.mean(scores)),
    }
    return Gathered(sorted(chosen) or first, facts=facts)


def _by_prompt(
    parts: Parts, rows: Sequence[RowView], config: RLConfig
) -> tuple[dict[int, tuple[list[RowView], bool]], list[float]]:
    """Rows by prompt with whether their scores differ, and all scores; these as the rewards give them."""
    scores = read(parts, rows, timeout_s=config.timeouts.call).column("score").to_pylist()
    numbers: dict[int, int] = {}
    groups = torch.tensor([numbers.setdefault(row.key.prompt_id, len(numbers)) for row in rows])
    teaches = has_signal(torch.tensor(scores, dtype=torch.float64), groups).tolist()
    found: dict[int, tuple[list[RowView], bool]] = {prompt: ([], teaches[number]) for prompt, number in numbers.items()}
    for row in rows:
        found[row.key.prompt_id][0].append(row)
    return found, scores


def submit(parts: Parts, tasks: Sequence[Any], config: RLConfig, *, further: bool) -> None:
    """Queue prompts; `further`: in place of some that were left out."""
    ref = parts.store.submit.remote(tasks, further)
    parts.watch.one("store", ref, timeout_s=config.timeouts.call, doing="queueing prompts")


def take(parts: Parts, iteration: int, config: RLConfig) -> list[RowView]:
    """Wait for the scored rows of an iteration that are not taken yet.

    Raises:
        WaitTimeout: they are not whole in time; says how many rows are where.
    """
    timeout_s = config.timeouts.batch
    ref = parts.store.take.remote(iteration, timeout_s, config.algorithm.fewest_answers)
    doing = f"collecting the batch of iteration {iteration}"
    rows: list[RowView] | None = parts.watch.one("store", ref, timeout_s=timeout_s + 10.0, doing=doing)
    if rows is None:
        status = parts.watch.one("store", parts.store.status.remote(), timeout_s=10.0, doing="telling its status")
        raise WaitTimeout(
            f"store: no whole batch of iteration {iteration} within {timeout_s:g} s; rows are: {status}; "
            f"rollout workers are: {parts.rollouts.states()}"
        )
    return rows


def read(parts: Parts, rows: Sequence[RowView], *, timeout_s: float) -> pa.RecordBatch:
    """A batch with all its columns (`store.schema.COLUMNS`), for metrics and for keeping."""
    refs = blocks_of(rows)
    blocks = parts.watch.several("store", refs, timeout_s=timeout_s, doing="handing out the batch")
    return read_batch(rows, dict(zip(refs, blocks, strict=True)))
