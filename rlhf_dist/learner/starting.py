"""Learner groups, started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Learner, Timeouts
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.rank import LearnerRank


@dataclass(frozen=True)
class GroupPlace:
    """Where a learner group runs, and how it is waited for."""

    settings: Learner
    options: Sequence[dict[str, Any]]
    """Ray options of each rank's actor."""
    run_dir: Path
    watch: Watch
    timeouts: Timeouts
    interface: str | None = None


def start_group(place: GroupPlace) -> LearnerGroup:
    """Start one actor per rank, and let them meet; they hold no model yet."""
    settings = place.settings
    kinds = [pulse.watched(LearnerRank).options(**each) for each in place.options]
    ranks: list[Any] = [kind.remote(rank, settings.ranks, settings) for rank, kind in enumerate(kinds)]
    group = LearnerGroup(ranks, settings, watch=place.watch, timeouts=place.timeouts)
    try:
        group.meet(run_dir=place.run_dir, interface=place.interface)
    except BaseException:
        group.close()
        raise
    return group
