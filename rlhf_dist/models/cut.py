"""Long rows over several ranks: each computes a part of the tokens, and where tokens attend a part of the heads of all of them.

Ulysses (Jacobs et al. 2023, arXiv:2309.14509), with DeepSpeed's exchange. Every rank of a group is given the whole batch and has
the outputs of all its selected positions in the end, so losses are written as if nothing were cut; gradients of weights are each
rank's own part, and add up over ranks as those of data-parallel ranks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from rlhf_dist.errors import ModelError
from rlhf_dist.models.packed import PackedBatch
from rlhf_dist.models.varlen import keywords


@dataclass(frozen=True)
class Cut:
    """Over which ranks rows are cut, and which part is this one's."""

    group: Any
    """torch's process group of `parts` ranks."""
    parts: int
    part: int

    def of(self, batch: PackedBatch) -> RowPart:
        """This rank's piece of a batch in one row."""
        return RowPart(self, batch)

    def to_heads(self, states: torch.Tensor, share: int) -> torch.Tensor:
        """From a part of the tokens to a part of the heads: [tokens / parts, heads, size] to [tokens, heads / parts, size].

        Args:
            states: queries, or keys or values that `share` queries have together; these are repeated where they are too few.
            share: 1 for queries.

        Raises:
            ModelError: heads cannot be dealt out evenly.
        """
        heads = states.shape[1]
        again = next((n for n in range(1, share + 1) if share % n == 0 and heads * n % self.parts == 0), None)
        if again is None:
            raise ModelError(
                f"attention has {heads * share} heads, which {self.parts} ranks cannot share evenly; expected a number of "
                "ranks that divides them (learner.sequence_parallel)"
            )
        states = states.repeat_interleave(again, 1) if again > 1 else states
        return self._exchanged(states.unflatten(1, (self.parts, -1)).transpose(0, 1)).flatten(0, 1)

    def to_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """The way back: [tokens, heads / parts, size] to [tokens / parts, heads, size]."""
        return self._exchanged(states.unflatten(0, (self.parts, -1))).transpose(0, 1).flatten(1, 2)

    def _exchanged(self, blocks: torch.Tensor) -> torch.Tensor:
        """Block i goes to rank i, and its block for this rank comes in its place."""
        from deepspeed.sequence.layer import _dim_zero_all_to_all, register_all_to_all_group

        register_all_to_all_group(self.group)
        found: torch.Tensor = _dim_zero_all_to_all(self.group, blocks.contiguous())
        return found


@dataclass(frozen=True)
class RowPart:
    """A rank's piece of a batch: tokens from `begin` on, as many as every other rank has; the row is filled up for that."""

    cut: Cut
    batch: PackedBatch

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Token ids and positions, [1, width] each."""
        rows = {"input_ids": self.batch.input_ids, "position_ids": self.batch.position_ids}
        return {name: F.pad(row, (0, self._filling))[:, self._own] for name, row in rows.items()}

    @property
    def documents(self) -> dict[str, Any]:
        """Where sequences lie in the whole row, whose tokens are together where they attend; the filling is one more."""
        starts, lengths = self.batch.starts, self.batch.lengths
        if self._filling and len(starts):
            starts = torch.cat([starts, starts.new_full((1,), self._tokens)])
            lengths = torch.cat([lengths, lengths.new_full((1,), self._filling)])
        return {**keywords(starts, lengths, self._tokens + self._filling), "cut": self.cut}

    @property
    def select(self) -> torch.Tensor:
        """Positions in the piece whose output is wanted, [own selected]."""
        begin: int = self._own.start
        return self.batch.select[self._chosen] - begin

    @property
    def targets(self) -> torch.Tensor:
        """The tokens that follow them."""
        return self.batch.targets[self._chosen]

    def whole(self, outputs: torch.Tensor) -> torch.Tensor:
        """The outputs of all selected positions, in their order, of each rank's own: [own selected, ...] to [selected, ...]."""
        counts = torch.bincount(self._owners, minlength=self.cut.parts).tolist()
        joined = _Joined.apply(outputs, self.cut, counts)  # type: ignore[no-untyped-call]
        found: torch.Tensor = joined[torch.argsort(torch.argsort(self._owners, stable=True))]
        return found

    @property
    def _tokens(self) -> int:
        return self.batch.input_ids.numel()

    @property
    def _filling(self) -> int:
        return -self._tokens % self.cut.parts

    @property
    def _width(self) -> int:
        return (self._tokens + self._filling) // self.cut.parts

    @property
    def _own(self) -> slice:
        return slice(self.cut.part * self._width, (self.cut.part + 1) * self._width)

    @cached_property
    def _owners(self) -> torch.Tensor:
        return self.batch.select // self._width

    @property
    def _chosen(self) -> torch.Tensor:
        mine: torch.Tensor = self._owners == self.cut.part
        return mine


class _Joined(torch.autograd.Function):
    """All ranks' outputs, one rank's after the other's. Each has the same loss of them, and so the gradient of its own."""

    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, cut: Cut, counts: list[int]) -> torch.Tensor:
        ctx.own = slice(sum(counts[: cut.part]), sum(counts[: cut.part + 1]))
        filled = outputs.new_zeros(max(counts), *outputs.shape[1:])
        filled[: len(outputs)] = outputs
        found = [torch.empty_like(filled) for _ in counts]
        torch.distributed.all_gather(found, filled, group=cut.group)
        return torch.cat([each[:count] for each, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grads[0][ctx.own].contiguous(), None, None
