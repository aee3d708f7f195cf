"""Ray's object store, which each node keeps in /dev/shm: whether what a run holds there fits, and whether it was spilled."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
LEAST_MIB = 512
"""What a cluster gets that is started here, for a run that needs less or does not say."""
FULL = 0.8
"""Share of the store from which on Ray writes objects to disk (its `object_spilling_threshold`)."""
ANSWER_S = 10.0
MIB, GIB = 2**20, 2**30


def size_here(settings: Cluster, needed: float) -> int:
    """Bytes that the object store of a cluster which is started here gets.

    Args:
        settings: the cluster's, which may say.
        needed: bytes that the run holds in it at once; 0: unknown.

    Raises:
        EnvironmentProblem: so much is not free in /dev/shm, or the settings say less.
    """
    wanted = max(LEAST_MIB * MIB, int(needed / FULL))
    if settings.object_store_mib is not None:
        check(
            settings.object_store_mib * MIB,
            needed,
            "cluster.object_store_mib is {}; raise it, or leave it out: then it fits",
        )
        return settings.object_store_mib * MIB
    free = shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else 0
    if wanted > max(free, LEAST_MIB * MIB):  # a small one Ray puts on disk where it must
        check(
            free,
            needed,
            "{} are free in /dev/shm; give the container more (`docker run --shm-size`), or delete files there",
        )
    return wanted


def check_cluster(needed: float) -> None:
    """Refuse a cluster whose nodes together could not hold what a run holds at once; the log names a node that may be small.

    Raises:
        EnvironmentProblem: says what is there and what is needed.
    """
    import ray

    nodes = {
        node["NodeManagerAddress"]: node["Resources"].get("object_store_memory", 0.0)
        for node in ray.nodes()
        if node["Alive"]
    }
    check(
        sum(nodes.values()),
        needed,
        "the object stores of the Ray cluster's nodes have {} together; start nodes with `ray start --object-store-memory`",
    )
    for node, size in nodes.items():
        if size * FULL < needed:
            told = {"node": node, "bytes": size, "needed": needed}
            log.info("a node's object store does not hold all that a run holds at once", extra=told)


def check(size: float, needed: float, found: str) -> None:
    """Refuse an object store in which what a run holds at once would be written to disk and read again.

    Args:
        size: its bytes.
        needed: bytes held at once.
        found: a sentence with a place for the size.

    Raises:
        EnvironmentProblem: says both, and what needs less.
    """
    if size * FULL < needed:
        raise EnvironmentProblem(
            f"this run's weight versions and experience take {needed / GIB:.2f} GiB of shared memory at once, and Ray writes to "
            f"disk what is over {FULL:.0%} of its object store: expected {needed / FULL / GIB:.2f} GiB, but "
            + found.format(f"{size / GIB:.2f} GiB")
            + ". weights.wire_dtype bfloat16 and learner.lora take less"
        )


def spilled_bytes() -> int | None:
    """Bytes that all nodes of our cluster have written to disk up to now, for lack of room; None where nobody can say."""
    import ray

    if not ray.is_initialized():
        return None
    import grpc  # type: ignore[import-untyped]
    from ray.exceptions import RayError

    # An inner call of Ray's, which other versions may not have: nothing that a run ends of.
    try:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return int(get_memory_info_reply(state, timeout_seconds=ANSWER_S).store_stats.spilled_bytes_total)
    except (ImportError, AttributeError, AssertionError, OSError, RayError, grpc.RpcError) as error:
        log.info("nobody can say what was spilled", extra={"reason": str(error)})
        return None
