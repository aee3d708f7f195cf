"""All learner ranks as one object: it plans who gets which rows, and makes the collective calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import PPO, Learner, Timeouts
from rlhf_dist.data.packing import plan
from rlhf_dist.learner.rank import LearnerRank, Loss, ModelSpec
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.weights import Probe


@dataclass(frozen=True)
class SupervisedBatch:
    """What one supervised step learns from."""

    examples: Any
    """Handle of all examples of the stage (`data.examples.EXAMPLES`) in shared memory."""
    units: Sequence[Sequence[int]]
    """Example numbers of this step; those of one unit share a row, e.g. a preference pair."""
    lengths: Sequence[int]
    """Tokens of each unit."""
    count: float
    """What the summed loss is divided by: tokens, or pairs, over all ranks."""


class LearnerGroup:
    """The learner as the controller sees it."""

    def __init__(
        self, ranks: Sequence[Any], settings: Learner, *, hidden: int, watch: Watch, timeouts: Timeouts
    ) -> None:
        """Take over started ranks.

        Args:
            ranks: handles of `LearnerRank` actors, in rank order.
            settings: the learner's settings.
            hidden: the policy's hidden size, for balancing.
            watch: how to wait.
            timeouts: how long.
        """
        self.ranks = list(ranks)
        self._settings, self._hidden, self._watch, self._timeouts = settings, hidden, watch, timeouts
        self._num_buckets = 0
        self.num_parameters = 0

    def start(self, specs: dict[str, ModelSpec]) -> None:
        """Let the ranks meet and load their models."""
        start = self._timeouts.start
        first = self._watch.one("learner-0", self.ranks[0].address.remote(), timeout_s=start, doing="choosing a port")
        self._call("join", *first, start, timeout_s=start, doing="meeting the other ranks")
        self.num_parameters = self._call("load", specs, timeout_s=start, doing="loading models")[0]

    def update(
        self, views: Sequence[RowView], ppo: PPO, *, kl_coef: float, reuse_rollout_log_probs: bool, seed: int
    ) -> dict[str, float]:
        """One PPO update on a batch of scored rows; the mini-batches are the same whatever the number of ranks."""
        ranks = len(self.ranks)
        order = np.random.default_rng(seed).permutation(len(views)) if ppo.mini_batches > 1 else np.arange(len(views))
        mine: list[list[int]] = [[] for _ in range(ranks)]
        minis: list[list[list[list[list[int]]]]] = [[] for _ in range(ranks)]
        for chosen in np.array_split(order, ppo.mini_batches):
            for rank, micros in enumerate(self._plan([views[i].tokens for i in chosen])):
                local = [[[self._local(mine[rank], int(chosen[i])) for i in row] for row in micro] for micro in micros]
                minis[rank].append(local)
        calls = {}
        for rank, handle in enumerate(self.ranks):
            blocks, rows = _address([views[i] for i in mine[rank]])
            ref = handle.update.remote(blocks, rows, minis[rank], ppo, kl_coef, reuse_rollout_log_probs)
            calls[f"learner-{rank}"] = ref
        results = self._watch.wait(calls, timeout_s=self._timeouts.update, doing="updating policy and critic")
        return dict(results["learner-0"])

    def train_step(self, name: str, batch: SupervisedBatch, loss: Loss, *, learn: bool = True) -> dict[str, float]:
        """One supervised optimiser step (or, without `learn`, an evaluation): mean loss, and the loss's other means."""
        calls = {}
        for rank, micros in enumerate(self._plan(batch.lengths)):
            flat = [[[example for unit in row for example in batch.units[unit]] for row in micro] for micro in micros]
            handle = self.ranks[rank]
            calls[f"learner-{rank}"] = handle.train_step.remote(name, batch.examples, flat, loss, batch.count, learn)
        return dict(self._watch.wait(calls, timeout_s=self._timeouts.update, doing="a training step")["learner-0"])

    def plan_weights(self, *, bucket_bytes: int, wire_dtype: str) -> None:
        """Fix the buckets in which the policy is published."""
        call = self._timeouts.call
        counts: list[int] = self._call(
            "plan_weights", "policy", bucket_bytes, wire_dtype, timeout_s=call, doing="planning buckets"
        )
        self._num_buckets = counts[0]

    def publish(self, store: Any, version: int, *, probe_tokens: Sequence[int] | None) -> int:
        """Make the policy's weights version `version` of the store; returns its bytes."""
        publish = self._timeouts.publish
        probe = None
        if probe_tokens is not None:
            log_probs = self._call("probe", list(probe_tokens), timeout_s=publish, doing="computing the probe")[0]
            probe = Probe(tuple(probe_tokens), tuple(log_probs))
        ref = store.publish.remote(version, self.ranks, self._num_buckets, probe)
        doing = f"publishing weight version {version}"
        num_bytes: int = self._watch.one("store", ref, timeout_s=publish, doing=doing)
        return num_bytes

    def save(self, name: str, folder: Path) -> None:
        """Write a model in Hugging Face layout."""
        self._call("save", name, folder, timeout_s=self._timeouts.publish, doing=f"saving {name} to {folder}")

    def peak_memory(self) -> int:
        """Largest peak memory of a rank, in bytes."""
        peaks: list[int] = self._call("memory_bytes", timeout_s=self._timeouts.call, doing="reading its memory")
        return max(peaks)

    def _plan(self, lengths: Sequence[int]) -> list[list[list[list[int]]]]:
        settings = self._settings
        return plan(
            lengths,
            ranks=len(self.ranks),
            micro_batch_tokens=settings.micro_batch_tokens,
            row_tokens=settings.row_tokens,
            hidden=self._hidden,
        )

    def _local(self, mine: list[int], index: int) -> int:
        mine.append(index)
        return len(mine) - 1

    def _call(self, method: str, *args: Any, timeout_s: float, doing: str) -> list[Any]:
        calls = {f"learner-{rank}": getattr(handle, method).remote(*args) for rank, handle in enumerate(self.ranks)}
        return list(self._watch.wait(calls, timeout_s=timeout_s, doing=doing).values())


def _address(views: Sequence[RowView]) -> tuple[list[Any], list[dict[str, tuple[int, int]]]]:
    """Distinct blocks of some rows, and each row's slices as (block number, index)."""
    numbers: dict[Any, int] = {}
    rows = []
    for view in views:
        row = {}
        for writer, part in view.slices.items():
            row[writer] = (numbers.setdefault(part.block, len(numbers)), part.row)
        rows.append(row)
    return list(numbers), rows


def start_group(
    settings: Learner,
    specs: dict[str, ModelSpec],
    *,
    hidden: int,
    gpu_share: float,
    seed: int,
    watch: Watch,
    timeouts: Timeouts,
) -> LearnerGroup:
    """Start one actor per rank, let them meet, and load the models.

    Args:
        settings: the learner's settings.
        specs: models to train, by name.
        hidden: their hidden size, for balancing.
        gpu_share: GPUs per rank; 0: CPUs do everything.
        seed: of weights that start at random.
        watch: how to wait.
        timeouts: how long.
    """
    import ray

    env = {"OMP_NUM_THREADS": str(settings.threads)} if gpu_share == 0 else {}
    kind = ray.remote(num_cpus=1, num_gpus=gpu_share, runtime_env={"env_vars": env})(LearnerRank)
    ranks = [kind.remote(rank, settings.ranks, settings, seed=seed) for rank in range(settings.ranks)]
    group = LearnerGroup(ranks, settings, hidden=hidden, watch=watch, timeouts=timeouts)
    group.start(specs)
    return group
