"""The nodes of a Ray cluster that runs already, as a plan takes them."""

from __future__ import annotations

from typing import Any

from rlhf_dist.errors import WaitTimeout
from rlhf_dist.planning.plan import Machines


def machines_there(*, timeout_s: float) -> Machines | None:
    """The nodes with GPUs of the cluster that we are connected to; None where torch finds none of these GPUs.

    Where nodes differ, all count as the largest: what has no room there has none on them.

    Raises:
        WaitTimeout: a node does not say in time how large its GPUs are.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    memory = _memory_of([*{_kind(node["Resources"]): node["NodeID"] for node in nodes}.values()], timeout_s)
    if not memory:
        return None
    gpus, cpus = (int(max(node["Resources"].get(kind, 0.0) for node in nodes)) for kind in ("GPU", "CPU"))
    return Machines(len(nodes), gpus, memory / 1e9, cpus)


def _kind(resources: dict[str, float]) -> tuple[Any, ...]:
    """What nodes with equal GPUs have in common."""
    return (resources["GPU"], *sorted(name for name in resources if name.startswith("accelerator_type:")))


def _memory_of(nodes: list[str], timeout_s: float) -> int:
    """Bytes of the largest GPU on some nodes."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask: Any = ray.remote(_own_memory)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked.append(ask.options(num_cpus=0, num_gpus=0, scheduling_strategy=there).remote())
    try:
        return max(ray.get(asked, timeout=timeout_s), default=0)
    except RayError as error:
        raise WaitTimeout(
            f"no answer within {timeout_s:g} s from nodes that were to tell how large their GPUs are: {error}"
        ) from error


def _own_memory() -> int:
    """Bytes of the largest GPU of this node, as torch finds them: it need not be free."""
    import torch

    count = torch.cuda.device_count()
    return max((int(torch.cuda.get_device_properties(number).total_memory) for number in range(count)), default=0)
