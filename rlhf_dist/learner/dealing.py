"""What each rank gets of a batch: rows, examples and demonstrations, in micro-batches within the ranks' bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from rlhf_dist.config import RL, Learner
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.data.packing import Budget, MicroBatch, plan_micro_batches
from rlhf_dist.learner.imitation import Imitation
from rlhf_dist.learner.shards import Shard, cut_into_shards
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.models.fits import positions_of
from rlhf_dist.models.wrapped import RowLayout
from rlhf_dist.store.experience import RowView


def row_tokens_of(settings: Learner, layout: RowLayout, positions: int | None) -> int:
    """Tokens of a row that samples are packed into.

    Args:
        settings: the learner's.
        layout: how its models take rows.
        positions: fewest of the models': some families' masks are as wide as these. A wide row pays for flash attention alone.
    """
    return layout.row_tokens(min(settings.row_tokens, positions or settings.row_tokens), settings.micro_batch_tokens)


@dataclass(frozen=True)
class Dealer:
    """Deals batches out; ranks that share rows get the same."""

    budget: Budget
    """Of the data-parallel ranks."""
    sharing: int
    """Ranks that share each row (`learner.sequence_parallel`)."""

    @classmethod
    def of(cls, settings: Learner, ranks: int, layout: RowLayout, configs: Sequence[PreTrainedConfig]) -> Dealer:
        """For loaded models, by their configs; the first is the widest that counts for the cost of attention."""
        positions = min((found for config in configs if (found := positions_of(config))), default=None)
        budget = Budget(
            ranks // settings.sequence_parallel,
            settings.micro_batch_tokens,
            row_tokens_of(settings, layout, positions),
            configs[0].get_text_config().hidden_size,
        )
        return cls(budget, settings.sequence_parallel)

    def rows(self, views: Sequence[RowView], rl: RL, seed: int) -> list[Shard]:
        """For each rank its rows of an iteration, by mini-batch; see `cut_into_shards`."""
        return self._shared(cut_into_shards(views, self.budget, mini_batches=rl.mini_batches, seed=seed))

    def examples(self, batch: SupervisedBatch) -> list[list[MicroBatch]]:
        """For each rank its micro-batches of example numbers; the examples of a unit stay together and in order."""
        plans = [
            [[[example for unit in row for example in batch.units[unit]] for row in micro] for micro in micros]
            for micros in plan_micro_batches(batch.lengths, self.budget)
        ]
        return self._shared(plans)

    def demonstrations(self, stored: Any, everything: ExampleSet, rl: RL, seed: int) -> list[Imitation]:
        """For each rank, the demonstrations of each optimiser step of an update, drawn without putting back in a step.

        Args:
            stored: handle of the examples' table.
            everything: the examples.
            rl: how many steps, and of how many demonstrations.
            seed: of the update.
        """
        plans: list[list[list[MicroBatch]]] = []
        tokens = []
        draws = np.random.default_rng([seed, 1])
        for _ in range(rl.epochs * rl.mini_batches):
            size = min(rl.ptx_batch, len(everything.units))
            chosen = everything.selected(draws.choice(len(everything.units), size, replace=False).tolist())
            batch = SupervisedBatch(stored, chosen.units, chosen.lengths(), sum(chosen.weights))
            tokens.append(batch.count)
            plans.append(self.examples(batch))
        return [Imitation([stored], list(own), tokens) for own in zip(*plans, strict=True)]

    def _shared(self, parts: Sequence[Any]) -> list[Any]:
        return [part for part in parts for _ in range(self.sharing)]
