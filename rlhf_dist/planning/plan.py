"""`rlhf-dist plan`: where everything would go on a cluster, what it would take, and what would be slow. Starts nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from rlhf_dist.cluster.object_store import FULL
from rlhf_dist.cluster.placement import Layout, Place
from rlhf_dist.config import Job, RLJob
from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.cost import Device, device_of, phase_seconds
from rlhf_dist.planning.learning import KEPT, Parts
from rlhf_dist.planning.machine import GIB, cores, memory_bytes
from rlhf_dist.planning.processes import CONTEXT_BYTES, HOST_BYTES
from rlhf_dist.planning.scenes import Scene, scenes
from rlhf_dist.planning.sizes import ModelSize
from rlhf_dist.planning.weight_seconds import Steps, steps, transports, way_of, wire_bytes
from rlhf_dist.store.weights import KEPT_VERSIONS


@dataclass(frozen=True)
class Machines:
    """The cluster to plan for."""

    nodes: int
    gpus_per_node: int
    """0: CPUs do everything."""
    gpu_memory: float
    """GB per GPU."""
    cpus_per_node: int = 64


@dataclass
class Seat:
    """One device of the cluster, and who sits on it."""

    node: int
    number: int
    free: float = 1.0
    actors: list[Place] = field(default_factory=list)

    def device(self, *, gpus: bool) -> tuple[int, int]:
        """Whose memory its actors fill: a GPU's, or without GPUs the node's."""
        return (self.node, self.number if gpus else 0)


@dataclass(frozen=True)
class Plan:
    """What `rlhf-dist plan` says of one scene of a stage."""

    machines: Machines
    scene: Scene
    seats: list[Seat]
    capacity: float
    """Bytes of one device."""
    phases: dict[str, float]
    """Seconds; none for stages of which nothing is known."""
    device: Device
    rollout_workers: int
    transports: dict[str, Steps] = field(default_factory=dict)
    """Seconds of each step of a weight version, by transport."""

    @property
    def gpus(self) -> bool:
        """Whether devices are GPUs."""
        return self.machines.gpus_per_node > 0

    def peak(self, actors: list[Place]) -> tuple[str, float]:
        """The phase in which actors that share a device fill it most, and its bytes."""
        names = dict.fromkeys(phase for actor in actors for phase in self.scene.memory[actor.role])
        found = {name: sum(self.of_actor(actor.role, name) for actor in actors) for name in names}
        worst = max(found, key=lambda name: (found[name], name != KEPT))
        return worst, found[worst]

    def of_actor(self, role: str, phase: str) -> float:
        """Bytes that an actor takes of its device in a phase."""
        parts = self.parts(role, phase)
        if not self.gpus:
            return HOST_BYTES[role] + sum(parts.values())
        return CONTEXT_BYTES + sum(size for part, size in parts.items() if "(host)" not in part)

    def parts(self, role: str, phase: str) -> Parts:
        """What fills an actor's memory in a phase."""
        phases = self.scene.memory[role]
        return phases.get(phase, phases[KEPT])

    def devices(self) -> dict[tuple[int, int], list[Place]]:
        """Actors by device."""
        found: dict[tuple[int, int], list[Place]] = defaultdict(list)
        for seat in self.seats:
            found[seat.device(gpus=self.gpus)] += seat.actors
        if not self.gpus and "store" in self.scene.memory:
            found[min(found)] += self.scene.layout.of("store")
        return dict(found)

    def overflowing(self) -> list[tuple[tuple[int, int], list[Place], str, float]]:
        """Device, actors, phase and bytes of each that has no room; of devices with alike actors one."""
        found: dict[tuple[str, ...], tuple[tuple[int, int], list[Place], str, float]] = {}
        for device, actors in self.devices().items():
            phase, used = self.peak(actors)
            if used > self.capacity:
                found.setdefault(tuple(sorted(actor.role for actor in actors)), (device, actors, phase, used))
        return list(found.values())

    def problems(self) -> list[str]:
        """Devices (nodes, where CPUs do everything) that would overflow, and by whom."""
        told = []
        for (node, number), actors, phase, used in self.overflowing():
            where = f" device {number}" if self.gpus else ""
            worst = max(actors, key=lambda actor: self.of_actor(actor.role, phase))
            names = [actor.name for actor in actors]
            shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
            told.append(
                f"node {node}{where} ({shown}) needs {used / GIB:.1f} GiB of {self.capacity / GIB:.1f} while it is to {phase}, "
                f"{worst.name} most: {self.of_actor(worst.role, phase) / GIB:.1f} GiB"
            )
        return told

    def host_bytes(self) -> dict[int, float]:
        """Host memory by node, beside what the object store takes; where CPUs do everything, of all."""
        found: dict[int, float] = defaultdict(float)
        for seat in self.seats:
            for actor in seat.actors:
                phases = self.scene.memory[actor.role].values()
                found[seat.node] += HOST_BYTES[actor.role] + max(
                    sum(size for part, size in parts.items() if "(host)" in part or not self.gpus) for parts in phases
                )
        return dict(found)

    def store_bytes(self) -> dict[int, float]:
        """Object store by node: learners' nodes hold the versions' buckets, a node of engines alone the one that it pulls."""
        if "store" not in self.scene.memory:
            return {}
        versions, experience = (self.scene.memory["store"][KEPT][part] for part in ("weight versions", "experience"))
        ranks: dict[int, int] = defaultdict(int)
        engines = set()
        for seat in self.seats:
            ranks[seat.node] += sum(actor.role == "learner" for actor in seat.actors)
            engines |= {seat.node} if any(actor.role == "rollout" for actor in seat.actors) else set()
        found = {node: versions * count / sum(ranks.values()) for node, count in ranks.items()}
        for node in engines:
            found[node] = max(found[node], versions / (KEPT_VERSIONS + 1))
        first = min(found)
        found[first] += experience
        return {node: each / FULL for node, each in found.items() if each}

    def bottleneck(self) -> tuple[str, str]:
        """The longest phase, and what would shorten it."""
        phase = max(self.phases, key=lambda name: self.phases[name])
        return phase, FASTER[phase]


FASTER = {
    "gen": "more rollout.workers",
    "score": "more scoring.reward_workers and scoring.reference_workers",
    "update": "more learner.ranks",
    "update_weights": "weights.wire_dtype bfloat16, or more learner.ranks",
    "pull_weights": "a faster network between the nodes",
}


def make_plans(config: Job, machines: Machines, sizes: dict[str, ModelSize]) -> list[Plan]:
    """A plan for each scene of a stage; arguments as for `make_plan`, which is for a stage's fullest."""
    capacity = machines.gpu_memory * 1e9
    found = scenes(config, sizes, gpu_bytes=capacity if machines.gpus_per_node else None)
    return [_plan(scene, config, machines, sizes) for scene in found]


def make_plan(config: Job, machines: Machines, sizes: dict[str, ModelSize]) -> Plan:
    """Place every actor on the cluster's devices, and estimate, for the scene of a stage that fills a device most.

    Args:
        config: the stage's settings.
        machines: the cluster.
        sizes: of each role's models (`planning.roles.sizes_of`).

    Raises:
        ConfigError: the cluster has too few devices.
    """
    return fullest(make_plans(config, machines, sizes))


def fullest(plans: list[Plan]) -> Plan:
    """The plan whose fullest device is fullest; the last of equals."""
    return max(reversed(plans), key=lambda plan: max(plan.peak(actors)[1] for actors in plan.devices().values()))


def _plan(scene: Scene, config: Job, machines: Machines, sizes: dict[str, ModelSize]) -> Plan:
    gpus = machines.gpus_per_node > 0
    seats = [
        Seat(node, number)
        for node in range(machines.nodes)
        for number in range(machines.gpus_per_node or machines.cpus_per_node)
    ]
    _seat_bundles(scene.layout, seats, gpus=gpus)
    workers = _seat_engines(scene, seats, gpus=gpus)
    device = device_of(machines.gpu_memory, gpus=gpus)
    seconds: dict[str, float] = {}
    ways: dict[str, Steps] = {}
    if isinstance(config, RLJob) and "rollout" in scene.memory:
        nodes = {
            role: {seat.node for seat in seats for actor in seat.actors if actor.role == role} for role in scene.memory
        }
        way = way_of(config, device.network_gb, gpus=gpus, nodes=nodes)
        seconds = phase_seconds(config, sizes, device, rollout_workers=workers, gpus=gpus, way=way)
        num_bytes = wire_bytes(config, sizes["policy"])
        ways = {name: steps(num_bytes, way, name) for name in transports(way)}
    taken = [seat for seat in seats if seat.actors]
    return Plan(machines, scene, taken, machines.gpu_memory * 1e9, seconds, device, workers, ways)


def _seat_bundles(layout: Layout, seats: list[Seat], *, gpus: bool) -> None:
    """Fill node after node, as the strategy PACK does."""
    kind = "GPU" if gpus else "CPU"
    for number, bundle in enumerate(layout.bundles):
        taken = _within_a_node(seats, bundle[kind])
        if not taken:
            raise _too_small(layout, seats, gpus=gpus)
        for seat in taken:
            seat.free -= min(1.0, bundle[kind])
            seat.actors += [
                place
                for place in layout.places
                if number in (place.shares or (place.bundle,)) and place.role != "store"
            ]
    _check_engines(layout, seats)


def _check_engines(layout: Layout, seats: list[Seat]) -> None:
    """Refuse engines over the cards of ranks on several nodes, as a run would (`cluster.bundles`)."""
    for place in layout.places:
        nodes = {seat.node for seat in seats if place in seat.actors}
        if len(nodes) > 1:
            raise ConfigError(
                f"{place.name} would be cut over the GPUs of learner ranks on {len(nodes)} nodes; expected those of one: each "
                f"node's number of ranks must be a multiple of rollout.tensor_parallel {len(place.shares)}"
            )


def _seat_engines(scene: Scene, seats: list[Seat], *, gpus: bool) -> int:
    """Put engines where there is room, each within one node, up to the most that are wanted; returns their number."""
    layout = scene.layout
    loose = [place for place in layout.places if place.bundle is None]
    if not loose:
        return len(layout.of("rollout"))
    need = loose[0].gpus if gpus else loose[0].cpus
    for index in range(scene.engines):
        place = Place(loose[0].role, index, loose[0].cpus, loose[0].gpus, None)
        taken = _within_a_node(seats, need)
        if not taken:
            if index < len(loose):
                raise _too_small(layout, seats, gpus=gpus)
            return index
        for seat in taken:
            seat.free -= min(1.0, need)
            seat.actors.append(place)
    return scene.engines


def _within_a_node(seats: list[Seat], need: float) -> list[Seat]:
    """Seats for one engine or bundle: one with enough room, or as many whole ones of one node as it has GPUs."""
    for node in sorted({seat.node for seat in seats}):
        free = [seat for seat in seats if seat.node == node and seat.free >= min(1.0, need) - 1e-9]
        count = max(1, round(need))
        if len(free) >= count:
            return free[:count]
    return []


def _too_small(layout: Layout, seats: list[Seat], *, gpus: bool) -> ConfigError:
    cpus, wanted = layout.totals()
    kind, needed = ("GPUs", wanted) if gpus else ("CPUs", cpus)
    nodes = len({seat.node for seat in seats})
    return ConfigError(
        f"the plan's cluster has {len(seats)} {kind} on {nodes} nodes; the run needs {needed:g} to start, those of an engine or "
        "a scoring worker within one node. Have more nodes or GPUs (--nodes, --gpus-per-node), lower learner.ranks, "
        "rollout.workers or scoring.*_workers, or let actors share devices (cluster.placement, cluster.gpu_share)"
    )


def this_machine(config: Job, sizes: dict[str, ModelSize]) -> Machines:
    """This machine, with as many CPU slots as the stage asks for at least."""
    import torch

    gpus = torch.cuda.device_count()
    capacity = torch.cuda.get_device_properties(0).total_memory if gpus else memory_bytes()
    needed = max(scene.layout.totals()[0] for scene in scenes(config, sizes, gpu_bytes=capacity if gpus else None))
    return Machines(1, gpus, capacity / 1e9, max(cores(), math.ceil(needed)))
