"""Where a stage's actors go, and what each is told of its devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.cluster import head
from rlhf_dist.cluster.allocator import growing
from rlhf_dist.cluster.bundles import Bundles
from rlhf_dist.cluster.placement import Layout, Place
from rlhf_dist.cluster.session import namespace_of
from rlhf_dist.cluster.threads import environment_of
from rlhf_dist.cluster.watch import Watch, watch_of
from rlhf_dist.config import Timeouts
from rlhf_dist.telemetry.logs import log_dir


@dataclass(frozen=True)
class Where:
    """Where a stage's actors go, and where they write; it stays when a run is wired anew."""

    layout: Layout
    bundles: Bundles
    run_dir: Path
    watch: Watch

    @property
    def on_gpus(self) -> bool:
        """Whether devices are GPUs, as far as Ray knows."""
        return self.layout.on_gpus

    @property
    def log_dir(self) -> str:
        """Folder of the actors' log files."""
        return log_dir(self.run_dir)

    def options(self, place: Place, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Ray options of an actor in its place; its name is the run's own, also within a session that other runs share."""
        seen = {**(environment or {}), **self.bundles.sight(place)}
        return {
            "name": place.name,
            "namespace": namespace_of(self.run_dir),
            **({"runtime_env": {"env_vars": seen}} if seen else {}),
            **self.bundles.options(place),
        }

    def threads(self, settings: int) -> int:
        """CPU threads of an actor: those of its GPU's part of the node, or on CPUs what its settings say."""
        return settings if self.layout.threads is None else self.layout.threads

    def torch(self, threads: int, *, lends: bool = False) -> dict[str, str]:
        """Variables of an actor that computes with torch itself.

        Args:
            threads: what its settings say of CPUs.
            lends: others open its memory.
        """
        return environment_of(self.threads(threads)) | (growing() if self.on_gpus and not lends else {})


@contextmanager
def placed(layout: Layout, run_dir: Path, timeouts: Timeouts) -> Iterator[Where]:
    """Room for actors inside the block; with it everybody in it goes.

    Args:
        layout: where they go.
        run_dir: the run's folder, which every learner rank must see.
        timeouts: how long a start may take, and how they are watched.

    Raises:
        EnvironmentProblem: there is no room for them in time.
    """
    bundles = Bundles(layout)
    try:
        bundles.settle(timeout_s=timeouts.start)
        yield Where(layout, bundles, run_dir, watch_of(timeouts))
    finally:
        if head.fallen() is None:
            bundles.remove()
