"""`rlhf-dist plan`: where everything would go on a cluster, what it would take, and what would be slow. Starts nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlhf_dist.cluster.placement import Layout, Place, lay_out
from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.cost import Device, device_of, phase_seconds
from rlhf_dist.planning.machine import GIB, cores, memory_bytes
from rlhf_dist.planning.memory import ModelSize, memory

CONTEXT_GIB = 0.6
"""What a CUDA context with torch and NCCL takes of a GPU, per process."""


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


@dataclass(frozen=True)
class Plan:
    """What `rlhf-dist plan` says."""

    machines: Machines
    layout: Layout
    seats: list[Seat]
    memory: dict[str, dict[str, float]]
    """Role to part to bytes, of one actor."""
    capacity: float
    """Bytes of one device."""
    phases: dict[str, float]
    device: Device
    rollout_workers: int

    def used(self, seat: Seat) -> float:
        """Bytes that one device's actors take together."""
        own = CONTEXT_GIB * GIB if self.machines.gpus_per_node else 0.0
        total = sum(own + self.on_device(actor.role) for actor in seat.actors)
        if not self.machines.gpus_per_node or not {actor.role for actor in seat.actors} >= {"learner", "rollout"}:
            return total
        # Colocated engines sleep while learners train: an engine and a training step are not there together. What learners
        # keep between two steps stays beside the engine.
        step = self.memory["learner"]["activations"] + self.memory["learner"]["logits"]
        return total - min(step, self.on_device("rollout"))

    def on_device(self, role: str) -> float:
        """Bytes that an actor of a role takes of its device."""
        return sum(size for part, size in self.memory[role].items() if "host" not in part)

    def problems(self) -> list[str]:
        """Devices (nodes, where CPUs do everything) that would overflow, each with what would help; alike ones once."""
        groups: dict[object, list[Seat]] = {}
        for seat in self.seats:
            groups.setdefault((seat.node, seat.number) if self.machines.gpus_per_node else seat.node, []).append(seat)
        found = {}
        for seats in groups.values():
            used = sum(self.used(seat) for seat in seats)
            if used > self.capacity:
                actors = [actor for seat in seats for actor in seat.actors]
                worst = max(actors, key=lambda actor: self.on_device(actor.role))
                where = f" device {seats[0].number}" if self.machines.gpus_per_node else ""
                found[tuple(sorted({actor.role for actor in actors}))] = (
                    f"node {seats[0].node}{where} ({', '.join(actor.name for actor in actors)}) needs {used / GIB:.1f} GiB of "
                    f"{self.capacity / GIB:.1f}: {ADVICE[worst.role]}"
                )
        return list(found.values())

    def bottleneck(self) -> tuple[str, str]:
        """The longest phase, and what would shorten it."""
        phase = max(self.phases, key=lambda name: self.phases[name])
        return phase, FASTER[phase]


ADVICE = {
    "learner": "more learner.ranks with learner.zero_stage 3, gradient_checkpointing, or a smaller micro_batch_tokens",
    "rollout": "a smaller rollout.gpu_memory_fraction (kv_cache_gib on CPUs), or rollout.tensor_parallel",
    "reward": "cluster.placement disaggregated with scoring.tensor_parallel, or a smaller scoring.batch_tokens",
    "reference": "scoring.reference_on learner, or placement disaggregated with scoring.tensor_parallel",
    "teacher": "scoring.teacher_on learner, or placement disaggregated with scoring.tensor_parallel",
}
FASTER = {
    "gen": "more rollout.workers",
    "score": "more scoring.reward_workers and scoring.reference_workers",
    "update": "more learner.ranks",
    "update_weights": "weights.wire_dtype bfloat16, or more learner.ranks",
    "pull_weights": "a faster network between the nodes",
}


def make_plan(config: RLConfig, machines: Machines, sizes: dict[str, ModelSize]) -> Plan:
    """Place every actor on the cluster's devices, and estimate.

    Args:
        config: the run's settings.
        machines: the cluster.
        sizes: of each role's models (`planning.roles.sizes_of`).

    Raises:
        ConfigError: the cluster has too few devices.
    """
    gpus = machines.gpus_per_node > 0
    layout = lay_out(config, gpus=gpus)
    seats = [
        Seat(node, number)
        for node in range(machines.nodes)
        for number in range(machines.gpus_per_node or machines.cpus_per_node)
    ]
    _seat_bundles(layout, seats, gpus=gpus)
    workers = _seat_rollouts(config, layout, seats, gpus=gpus)
    device = device_of(machines.gpu_memory, gpus=gpus)
    capacity = machines.gpu_memory * 1e9
    roles = ("learner", "rollout", *config.scoring_workers, "store")
    return Plan(
        machines,
        layout,
        [seat for seat in seats if seat.actors],
        {role: memory(role, config, sizes, gpu_bytes=capacity if gpus else None) for role in roles},
        capacity,
        phase_seconds(config, sizes, device, rollout_workers=workers, gpus=gpus),
        device,
        workers,
    )


def _seat_bundles(layout: Layout, seats: list[Seat], *, gpus: bool) -> None:
    """Fill node after node, as the strategy PACK does."""
    kind = "GPU" if gpus else "CPU"
    for number, bundle in enumerate(layout.bundles):
        taken = _within_a_node(seats, bundle[kind])
        if not taken:
            raise _too_small(layout, seats, gpus=gpus)
        for seat in taken:
            seat.free -= min(1.0, bundle[kind])
            seat.actors += [place for place in layout.places if place.bundle == number and place.role != "store"]


def _seat_rollouts(config: RLConfig, layout: Layout, seats: list[Seat], *, gpus: bool) -> int:
    """Put engines where there is room, each within one node, up to the most that are wanted; returns their number."""
    loose = [place for place in layout.of("rollout") if place.bundle is None]
    if not loose:
        return len(layout.of("rollout"))
    need = loose[0].gpus if gpus else loose[0].cpus
    for index in range(config.rollout.workers.max):
        place = Place("rollout", index, loose[0].cpus, loose[0].gpus, None)
        taken = _within_a_node(seats, need)
        if not taken:
            if index < len(loose):
                raise _too_small(layout, seats, gpus=gpus)
            return index
        for seat in taken:
            seat.free -= min(1.0, need)
            seat.actors.append(place)
    return config.rollout.workers.max


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
        "a scoring worker within one node. Give more --nodes or --gpus-per-node, lower learner.ranks, rollout.workers or "
        "scoring.*_workers, or let actors share devices: cluster.placement colocated or hybrid, cluster.gpu_share"
    )


def here(config: RLConfig, sizes: dict[str, ModelSize]) -> Plan:
    """The plan for this machine alone."""
    import torch

    gpus = torch.cuda.device_count()
    capacity = torch.cuda.get_device_properties(0).total_memory if gpus else memory_bytes()
    cpus, _ = lay_out(config, gpus=gpus > 0).totals()
    return make_plan(config, Machines(1, gpus, capacity / 1e9, max(cores(), math.ceil(cpus))), sizes)
