"""Which actors a run starts, what each asks of Ray, and where it goes.

Learners, scorers and the store are one placement group (`bundles`), so they start together or not at all. Who shares a rank's
device asks Ray for nothing: it sits in the rank's bundle, and is told which devices it sees. Rollout workers with devices of
their own need no place in the group: each is one actor, so that a tensor-parallel engine never leaves its node, and nothing
that it does is a collective, so it may start and stop at any time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_dist.config import Cluster, Learner, RLJob, Rollout

RAYS_UNITS = 10_000
"""Into which Ray cuts a CPU slot."""


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
    shares: tuple[int, ...] = ()
    """Bundles of learner ranks whose devices it uses; it sits in the first of them."""

    @property
    def name(self) -> str:
        """The actor's name."""
        return "store" if self.role == "store" else f"{self.role}-{self.index}"


@dataclass(frozen=True)
class Layout:
    """All actors of a run at its start, and the bundles that some of them share."""

    places: tuple[Place, ...]
    bundles: tuple[dict[str, float], ...]
    threads: int | None = None
    """CPU threads of each process that has a GPU; None: there are no GPUs, and settings say."""

    @property
    def on_gpus(self) -> bool:
        """Whether devices are GPUs, as far as Ray knows."""
        return self.threads is not None

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


def slots_of(cores: float, devices: float) -> float:
    """CPU slots that go with so many GPUs: whole ones, or parts of one where there are fewer cores than GPUs.

    Args:
        cores: CPU slots of a node for each of its GPUs.
        devices: GPUs, or the share of one.
    """
    slots = cores * devices
    return float(math.floor(slots + 1e-6)) if slots >= 1 else math.floor(slots * RAYS_UNITS) / RAYS_UNITS


def threads_of(cores: float, share: float) -> int:
    """CPU threads of a process that has a GPU, or a share of one."""
    return max(1, int(slots_of(cores, share)))


def lay_out_ranks(learner: Learner, cluster: Cluster, *, gpus: bool, cores: float = 0.0) -> Layout:
    """The ranks of a learner, a bundle for each, all alike; arguments as for `lay_out`."""
    asked = _asked(1, cluster, gpus=gpus, cores=cores)
    places = tuple(Place("learner", rank, asked["CPU"], asked.get("GPU", 0.0), rank) for rank in range(learner.ranks))
    threads = threads_of(cores, cluster.gpu_share) if gpus else None
    return Layout(places, tuple(dict(asked) for _ in places), threads)


def lay_out(config: RLJob, *, gpus: bool, cores: float = 0.0) -> Layout:
    """Every actor of an RL run with the fewest rollout workers, in the config's placement.

    Args:
        config: the run's config.
        gpus: whether the cluster has GPUs; without, a device is a CPU slot.
        cores: CPU slots of a node for each of its GPUs, which go with them; 0: not known yet, none is asked for.
    """
    placement, ranks, parallel = config.cluster.placement, config.learner.ranks, config.rollout.tensor_parallel
    learners = lay_out_ranks(config.learner, config.cluster, gpus=gpus, cores=cores)
    places, bundles = [Place("store", 0, 0.0, 0.0, 0), *learners.places], [*learners.bundles]
    scorers = [(role, index) for role, count in config.scoring_workers.items() for index in range(count)]
    for number, (role, index) in enumerate(scorers):
        if placement != "disaggregated":  # all scorers, whatever their roles, go round the ranks
            places.append(Place(role, index, 0.0, 0.0, number % ranks, shares=(number % ranks,)))
            continue
        parts = config.devices_of_scorer(role)
        asked = _asked(parts, config.cluster, gpus=gpus, cores=cores)
        places.append(Place(role, index, asked["CPU"], asked.get("GPU", 0.0), len(bundles), parts))
        bundles.append(asked)
    asked = _asked(parallel, config.cluster, gpus=gpus, cores=cores)
    for index in range(config.rollout.workers.min):
        own = tuple(range(index * parallel, (index + 1) * parallel)) if placement == "colocated" else ()
        if own:
            places.append(Place("rollout", index, 0.0, 0.0, own[0], shares=own))
        else:
            places.append(Place("rollout", index, asked["CPU"], asked.get("GPU", 0.0), None))
    return Layout(tuple(places), tuple(bundles), learners.threads)


def _asked(devices: int, cluster: Cluster, *, gpus: bool, cores: float) -> dict[str, float]:
    """What an actor with so many devices of its own asks for."""
    share = devices * cluster.gpu_share
    return {"CPU": slots_of(cores, share), "GPU": share} if gpus else {"CPU": 1.0}


def shares_cores(layout: Layout) -> bool:
    """Whether all actors compute on the cores of one machine: no GPUs, and no second node."""
    import ray

    return not layout.on_gpus and sum(bool(node["Alive"]) for node in ray.nodes()) == 1


def room(place: Place) -> int:
    """How many more actors like this one the cluster could start now."""
    import ray

    free = ray.available_resources()
    needs = {"CPU": place.cpus, "GPU": place.gpus}
    return int(min(free.get(kind, 0.0) // need for kind, need in needs.items() if need))
