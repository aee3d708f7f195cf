"""How long a weight version is on its way from learner ranks to engines, by transport, and which step of it takes longest.

Each step is bytes over a rate, shared by those who do it at once. Steps of publication overlap, bucket by bucket, where there are
cores for it: then the slowest of them is the whole. Rates are what such parts reach in practice; benchmarks/weight_sync.py says
what the host's part of them is on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from rlhf_dist.config import RLJob
from rlhf_dist.planning.activations import BYTES
from rlhf_dist.planning.sizes import ModelSize

GB = 1e9
NVLINK = 150 * GB
"""Of one GPU to others of its node, in collectives."""
PCIE = 40 * GB
"""Between a GPU and pinned host memory; PCIe 5 x16 has 50."""
PAGEABLE = 6 * GB
"""From memory that is mapped, not pinned, to a GPU."""
HASH = 11 * GB
"""XXH3 of one thread."""
HOST_COPY = 8 * GB
"""One process copying into shared memory."""
HOST_MEMORY = 80 * GB
"""All processes of a node together, reading and writing."""
OBJECT_STREAM = 2 * GB
"""What Ray's object manager brings from one node to another: gRPC over TCP (ray#42632, ray#61093), however fast the network."""
DEVICE_COPY = 1000 * GB
"""Within a GPU, reading and writing."""
THREADS = 4
"""That hash beside each GPU."""
TRANSPORTS = ("object store", "cuda_ipc", "sharded_rdt")


@dataclass(frozen=True)
class Way:
    """Between whom weights go."""

    ranks: int
    """Of the learner."""
    learner_nodes: int
    zero_stage: int
    engine_nodes: int
    """Nodes with engines but without learner ranks."""
    tensor_parallel: int
    shared_devices: bool
    """Whether every engine lies on learners' GPUs."""
    network: float
    """Bytes per second between two nodes, all rails."""
    gpus: bool = True
    threads: int = THREADS
    """That hash beside each rank, or engine."""

    @property
    def ranks_per_node(self) -> float:
        """On each of the learner's nodes."""
        return self.ranks / self.learner_nodes


def way_of(config: RLJob, network_gb: float, *, gpus: bool, nodes: Mapping[str, Set[int]] | None = None) -> Way:
    """The way of a run's weights.

    Args:
        config: the run's settings.
        network_gb: between two nodes, GB/s.
        gpus: whether actors are on GPUs.
        nodes: numbers of those with learner ranks (`learner`) and with engines (`rollout`); None: one has all.
    """
    learners, engines = ((nodes or {}).get(role, {0}) for role in ("learner", "rollout"))
    return Way(
        ranks=config.learner.ranks,
        learner_nodes=len(learners),
        zero_stage=config.learner.zero_stage,
        engine_nodes=len(engines - learners),
        tensor_parallel=config.rollout.tensor_parallel,
        shared_devices=config.cluster.placement == "colocated",
        network=network_gb * GB,
        gpus=gpus,
        threads=THREADS if gpus else config.learner.threads,
    )


def wire_bytes(config: RLJob, policy: ModelSize) -> float:
    """Of a version after the first, which with adapters is only what these change."""
    return float((policy.adapted if config.learner.lora else policy.parameters) * BYTES[config.wire_dtype])


Steps = dict[str, float]
"""What is done, in order, to its seconds."""


def transports(way: Way) -> list[str]:
    """Those that could be taken."""
    return [
        name
        for name in TRANSPORTS
        if name == "object store" or (way.gpus and (name != "cuda_ipc" or way.shared_devices))
    ]


def steps(num_bytes: float, way: Way, transport: str) -> Steps:
    """Seconds of each step of one version, by itself.

    Args:
        num_bytes: of the version, in the dtype of the wire.
        way: between whom it goes.
        transport: one of `TRANSPORTS`.
    """
    gather = {"gather": _gathering(num_bytes, way)} if way.zero_stage == 3 and way.ranks > 1 else {}
    if transport == "cuda_ipc":
        return {**gather, "copy on the GPU": num_bytes / way.tensor_parallel / DEVICE_COPY}
    if transport == "sharded_rdt":
        cut = way.tensor_parallel > 1  # then one process reads for all, into the host's memory
        near = {"GPU to host": num_bytes / PCIE} if cut else {"NVLink": num_bytes / NVLINK}
        wire = {"network (RDMA)": num_bytes / way.network} if way.engine_nodes else near
        arriving = num_bytes / way.tensor_parallel
        last = {"host to GPU": arriving / PAGEABLE} if cut else {"copy on the GPU": arriving / DEVICE_COPY}
        return {**gather, **wire, **last}
    own, node = num_bytes / way.ranks, num_bytes / way.learner_nodes
    found = dict(gather)
    if way.gpus:
        found["GPU to host"] = own / PCIE
    found["hash"] = max(own / (HASH * way.threads), node / HOST_MEMORY)
    found["copy to the object store"] = max(own / HOST_COPY, 2 * node / HOST_MEMORY)
    if way.engine_nodes:
        streams = min(OBJECT_STREAM * way.learner_nodes, way.network)
        found["network (Ray)"] = max(num_bytes / streams, num_bytes * way.engine_nodes / (streams * way.learner_nodes))
    found["check"] = num_bytes / min(HASH * way.threads, HOST_MEMORY)
    found["host to GPU" if way.gpus else "copy into the engine"] = num_bytes / way.tensor_parallel / PAGEABLE
    return found


def publish_and_pull(found: Steps, *, gpus: bool) -> tuple[float, float]:
    """Seconds of publication, whose steps overlap where GPUs' hosts have the cores, and of an engine's pull.

    Args:
        found: the steps.
        gpus: whether they are between GPUs, whose hosts have cores for all of them.
    """
    sending = {name: found.get(name, 0.0) for name in ("GPU to host", "hash", "copy to the object store")}
    gather = found.get("gather", 0.0)
    pull = sum(seconds for name, seconds in found.items() if name not in sending and name != "gather")
    return (gather + max(sending.values()) if gpus else gather + sum(sending.values())), pull


def dominant(found: Steps) -> str:
    """The step that takes longest."""
    return max(found, key=lambda name: found[name])


def _gathering(num_bytes: float, way: Way) -> float:
    """Every rank receives all of it: within a node from its neighbours, between nodes each node once what the others have."""
    within = num_bytes * (1 - 1 / way.ranks) / (NVLINK if way.gpus else HOST_COPY / 4)
    between = num_bytes * (1 - 1 / way.learner_nodes) / way.network
    return max(within, between)
