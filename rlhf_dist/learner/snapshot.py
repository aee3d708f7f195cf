"""A learner group's models at one moment, in the cluster's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What a snapshot cost."""

    seconds: float
    """Of the slowest rank, until it could do something else."""
    num_bytes: int
    """Of all ranks together, or of one."""


@dataclass(frozen=True)
class Snapshot:
    """What every rank's models were at one moment, in shared memory.

    Its owner is who asked for it, so it outlives the ranks; what lies on a node that is lost is lost with it.
    """

    tables: Sequence[Any]
    """References, by rank."""
    reports: Sequence[Any]
    taken: float
    """When it was asked for, on the monotonic clock."""

    def is_whole(self) -> bool:
        """Whether all ranks have made their part of it, and none was lost meanwhile."""
        import ray
        from ray.exceptions import RayError

        refs = [*self.reports]
        if len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) < len(refs):
            return False
        try:
            ray.get(refs)
        except RayError:
            return False
        return True

    def cost(self) -> Cost:
        """What a whole one has cost."""
        import ray

        told: list[Cost] = ray.get([*self.reports])
        return Cost(max(each.seconds for each in told), sum(each.num_bytes for each in told))
