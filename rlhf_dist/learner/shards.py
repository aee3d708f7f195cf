"""Which rank learns from which rows of a batch, in which mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from rlhf_dist.data.packing import Budget, MicroBatch, plan_micro_batches
from rlhf_dist.store.experience import RowView


@dataclass
class Shard:
    """One rank's part of a batch; the samples of a prompt are never parted."""

    views: list[RowView] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """Number of each view's prompt in the batch."""
    places: list[int] = field(default_factory=list)
    """Number of each view in the batch."""
    mini_batches: list[list[MicroBatch]] = field(default_factory=list)
    """Of each mini-batch, its micro-batches; they hold positions in `views`."""


def cut_into_shards(views: Sequence[RowView], budget: Budget, *, mini_batches: int, seed: int) -> list[Shard]:
    """A shard for each rank; the mini-batches together are the same whatever the number of ranks.

    Args:
        views: rows in canonical order, so that the samples of a prompt follow each other.
        budget: ranks, and bounds of their micro-batches.
        mini_batches: optimiser steps of a pass over the batch; prompts are dealt out to them at random. There are no more of
            them than prompts, some of which may have gone where samples failed. A rank may have no row of one.
        seed: of the dealing.
    """
    prompts = [[i for i, _ in rows] for _, rows in groupby(enumerate(views), key=lambda each: each[1].key.prompt_id)]
    order = np.random.default_rng(seed).permutation(len(prompts)) if mini_batches > 1 else np.arange(len(prompts))
    group_of = {row: number for number, rows in enumerate(prompts) for row in rows}
    shards = [Shard() for _ in range(budget.ranks)]
    for part in np.array_split(order, min(mini_batches, len(prompts))):
        chosen = [row for prompt in part for row in prompts[prompt]]
        numbers = iter(range(len(chosen)))
        units = [[next(numbers) for _ in prompts[prompt]] for prompt in part]
        plans = plan_micro_batches([views[row].tokens for row in chosen], budget, units=units)
        for shard, micros in zip(shards, plans, strict=True):
            _add(shard, [[[chosen[i] for i in row] for row in micro] for micro in micros], views, group_of)
    return shards


def _add(shard: Shard, micros: list[MicroBatch], views: Sequence[RowView], group_of: dict[int, int]) -> None:
    """Append a mini-batch, its rows numbered as they come."""
    rows = [row for micro in micros for packed in micro for row in packed]
    place = {row: len(shard.views) + number for number, row in enumerate(rows)}
    shard.views += [views[row] for row in rows]
    shard.groups += [group_of[row] for row in rows]
    shard.places += rows
    shard.mini_batches.append([[[place[row] for row in packed] for packed in micro] for micro in micros])
