"""Which actors a run starts, what each asks of Ray, and where it goes.

Learners, scorers and the store are one placement group, so they start together or not at all, packed onto as few nodes as
can be. Rollout workers need no place in it: each is one actor, so that a tensor-parallel engine never leaves its node, and
nothing that it does is a collective, so it may start and stop at any time.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rlhf_dist.config import RLJob, Rollout
from rlhf_dist.errors import EnvironmentProblem

ENGINE_SHARE = 0.4
SCORERS_SHARE = 0.2
"""Of a device that learner, engine and scorers share; the learner has the rest. Ray counts shares, it enforces none."""
RAYS_UNITS = 10_000
"""Into which Ray cuts a GPU or a CPU slot."""


@dataclass(frozen=True)
class Place:
    """What one actor asks of Ray, and where it goes."""

    role: str
    index: int
    cpus: float
    gpus: float
    bundle: int | None
    """Number of its bundle in the placement group; None: wherever there is room."""
    parts: int = 1
    """Processes, each on a device of its own, that a scorer's models are cut over; 1: they are in the actor itself."""

    @property
    def name(self) -> str:
        """The actor's name."""
        return "store" if self.role == "store" else f"{self.role}-{self.index}"


@dataclass(frozen=True)
class Layout:
    """All actors of a run at its start, and the bundles that some of them share."""

    places: tuple[Place, ...]
    bundles: tuple[dict[str, float], ...]

    def of(self, role: str) -> list[Place]:
        """Places of one role, in order."""
        return [place for place in self.places if place.role == role]

    def totals(self) -> tuple[float, float]:
        """CPU slots and GPUs that are needed to start."""
        loose = [{"CPU": place.cpus, "GPU": place.gpus} for place in self.places if place.bundle is None]
        needs = [*self.bundles, *loose]
        cpus, gpus = (math.fsum(need.get(kind, 0.0) for need in needs) for kind in ("CPU", "GPU"))
        return cpus, gpus

    def needs(self, rollout: Rollout) -> dict[str, float]:
        """What a run with these actors asks of a session."""
        cpus, gpus = self.totals()
        others = sum(1 + place.parts * (place.parts > 1) for place in self.places if place.role != "rollout")
        return {"cpus": cpus, "gpus": gpus, "processes": others + engines_of(rollout)["processes"]}


def engines_of(rollout: Rollout) -> dict[str, float]:
    """What the fewest engines ask of a session; one that is spread over devices has a child process for each."""
    engines, devices = rollout.workers.min, rollout.tensor_parallel
    return {"cpus": engines, "gpus": engines * devices, "processes": engines * (1 + devices * (devices > 1))}


def lay_out(config: RLJob, *, gpus: bool) -> Layout:
    """Every actor of an RL run with the fewest rollout workers, in the config's placement.

    Args:
        config: the run's config.
        gpus: whether the cluster has GPUs; without, a device is a CPU slot.
    """
    scoring = config.scoring_workers
    shares_device = {
        "disaggregated": frozenset({"learner"}),
        "hybrid": frozenset({"learner", *scoring}),
        "colocated": frozenset({"learner", *scoring, "rollout"}),
    }[config.cluster.placement]
    counts = {"learner": config.learner.ranks, **scoring, "rollout": config.rollout.workers.min}
    device = config.cluster.gpu_share if gpus else 1.0
    ranks = config.learner.ranks
    # Shared devices: ranks and engines go round the ranks' bundles, and after them all scorers, whatever their roles.
    sharing = [(role, index) for role in counts for index in range(counts[role]) if role in shares_device]
    scored = [each for each in sharing if each[0] in scoring]
    guests = [
        (role, index, (scored.index((role, index)) if role in scoring else index) % ranks) for role, index in sharing
    ]
    scorers = Counter(bundle for role, _, bundle in guests if role in scoring)
    engines = Counter(bundle for role, _, bundle in guests if role == "rollout")

    def share(role: str, bundle: int) -> float:
        if role == "learner":
            return 1.0 - ENGINE_SHARE * bool(engines[bundle]) - SCORERS_SHARE * bool(scorers[bundle])
        return ENGINE_SHARE if role == "rollout" else SCORERS_SHARE / scorers[bundle]

    places = [Place("store", 0, 0.0, 0.0, 0)]
    bundles = [{"GPU": device, "CPU": 0.0} if gpus else {"CPU": 1.0} for _ in range(ranks)]
    for role, index, bundle in guests:
        part = math.floor(device * share(role, bundle) * RAYS_UNITS + 1e-6) / RAYS_UNITS  # so that all of them fit
        places.append(Place(role, index, 1.0 if gpus else part, part if gpus else 0.0, bundle))
        if gpus:
            bundles[bundle]["CPU"] += 1.0
    for role in scoring:
        for index in range(counts[role] if role not in shares_device else 0):
            parts = config.devices_of_scorer(role)
            places.append(Place(role, index, 1.0, device * parts if gpus else 0.0, len(bundles), parts))
            bundles.append({"CPU": 1.0, "GPU": device * parts} if gpus else {"CPU": 1.0})
    if "rollout" not in shares_device:
        each = device * config.rollout.tensor_parallel if gpus else 0.0
        places += [Place("rollout", index, 1.0, each, None) for index in range(counts["rollout"])]
    return Layout(tuple(places), tuple(bundles))


def reserve(layout: Layout, *, timeout_s: float) -> Any:
    """Reserve the bundles, all or none, packed onto few nodes.

    Raises:
        EnvironmentProblem: the cluster has no room for them in time; says what is asked for and what each node has.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in layout.bundles], strategy="PACK")
    try:
        ready(group, layout, timeout_s=timeout_s)
    except EnvironmentProblem:
        remove_placement_group(group)
        raise
    return group


def ready(group: Any, layout: Layout, *, timeout_s: float) -> None:
    """Wait until all bundles are there; Ray looks for other nodes for those of a node that is gone.

    Raises:
        EnvironmentProblem: as `reserve`.
    """
    import ray

    if not group.wait(timeout_s):
        nodes = "; ".join(
            f"{node['NodeManagerAddress']} {_told(node['Resources'])}" for node in ray.nodes() if node["Alive"]
        )
        wanted = ", ".join(_told(bundle) for bundle in layout.bundles)
        raise EnvironmentProblem(
            f"no room for learners and scorers within {timeout_s:g} s. They ask for {wanted}; the nodes have {nodes}, and "
            "other runs may hold some of it. Lower learner.ranks, scoring.*_workers or scoring.tensor_parallel (GPUs of one "
            "node), or add nodes"
        )


def options(place: Place, group: Any) -> dict[str, Any]:
    """Arguments of Ray's `options` that put an actor into its place, under its name."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy: Any = "SPREAD"
    if place.bundle is not None:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place.bundle)
    return {"num_cpus": place.cpus, "num_gpus": place.gpus, "scheduling_strategy": strategy}


def shares_cores(layout: Layout) -> bool:
    """Whether all actors compute on the cores of one machine: no GPUs, and no second node."""
    import ray

    return not any(place.gpus for place in layout.places) and sum(bool(node["Alive"]) for node in ray.nodes()) == 1


def room(place: Place) -> int:
    """How many more actors like this one the cluster could start now."""
    import ray

    free = ray.available_resources()
    needs = {"CPU": place.cpus, "GPU": place.gpus}
    return int(min(free.get(kind, 0.0) // need for kind, need in needs.items() if need))


def _told(resources: dict[str, float]) -> str:
    return " ".join(f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)) or "nothing"
