"""Packing of ragged sequences into rows, and balancing of rows over ranks. Plain Python and pure.

A micro-batch is [rows, width]; a row holds one or more sequences one after the other with restarting positions, so
attention is block-diagonal. On a GPU with flash attention a row may be as long as the micro-batch; on a CPU, where masked
attention costs width squared, the row is as long as the longest sequence.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

PackedRow = list[int]
"""Indices of the sequences that share a row."""
MicroBatch = list[PackedRow]


def compute_cost(tokens: int, *, width: int) -> float:
    """Cost of a sequence of n tokens, n (1 + n / (12 width)): the linear layers, and attention's quadratic share.

    For a model whose hidden size is `width` (Narayanan et al. 2021, arXiv:2104.04473, equation 3, up to a constant: 72 B s l h^2
    (1 + s / 6h), halved for causal attention).
    """
    return tokens * (1.0 + tokens / (12.0 * width))


def balance(costs: Sequence[float], *, parts: int) -> list[list[int]]:
    """Split indices into `parts` of nearly equal cost, largest first to the least loaded part."""
    heap = [(0.0, part) for part in range(parts)]
    groups: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, part = heapq.heappop(heap)
        groups[part].append(index)
        heapq.heappush(heap, (load + costs[index], part))
    return groups


def pack_rows(indices: Sequence[int], lengths: Sequence[int], *, row_tokens: int) -> list[PackedRow]:
    """First-fit decreasing into rows of at most `row_tokens` (a longer sequence has a row of its own)."""
    rows: list[PackedRow] = []
    space: list[int] = []
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        for row, left in enumerate(space):
            if lengths[index] <= left:
                rows[row].append(index)
                space[row] -= lengths[index]
                break
        else:
            rows.append([index])
            space.append(row_tokens - lengths[index])
    return rows


def micro_batches(rows: Sequence[PackedRow], lengths: Sequence[int], *, budget: int) -> list[MicroBatch]:
    """Group rows so that rows times the widest row stays within `budget` tokens (one wider row goes alone)."""
    groups: list[MicroBatch] = []
    widest = 0
    for row in sorted(rows, key=lambda row: -sum(lengths[i] for i in row)):
        width = max(widest, sum(lengths[i] for i in row))
        if groups and (len(groups[-1]) + 1) * width <= budget:
            groups[-1].append(row)
            widest = width
        else:
            groups.append([row])
            widest = sum(lengths[i] for i in row)
    return groups


@dataclass(frozen=True)
class Budget:
    """Where micro-batches go, and how large they may be."""

    ranks: int
    """Data-parallel ranks."""
    micro_batch_tokens: int
    """Most tokens (padding in) of a micro-batch."""
    row_tokens: int
    """Most tokens of a row; 0: the longest sequence."""
    hidden: int
    """The model's hidden size, for the cost of attention."""


def plan_micro_batches(
    lengths: Sequence[int], budget: Budget, *, units: Sequence[Sequence[int]] | None = None
) -> list[list[MicroBatch]]:
    """Micro-batches of each rank, the same number on each: collectives need all ranks, so short ranks get empty ones.

    Args:
        lengths: tokens of each sequence.
        budget: bounds.
        units: sequences that must come to one rank, each sequence in one unit; None: every sequence is its own.
    """
    units = [[index] for index in range(len(lengths))] if units is None else units
    costs = [sum(compute_cost(lengths[index], width=budget.hidden) for index in unit) for unit in units]
    row_tokens = budget.row_tokens or max(lengths)
    plans = []
    for chosen in balance(costs, parts=budget.ranks):
        rows = pack_rows([index for unit in chosen for index in units[unit]], lengths, row_tokens=row_tokens)
        plans.append(micro_batches(rows, lengths, budget=budget.micro_batch_tokens))
    steps = max(len(micros) for micros in plans)
    return [micros + [[] for _ in range(steps - len(micros))] for micros in plans]
