"""Nodes that pretend to have GPUs: they join the tests' Ray for a while. Ray hands their numbers out; torch finds no card."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

QUICK = {"RAY_prestart_worker_first_driver": "0"}
"""No worker is started before it is wanted."""


@contextmanager
def pretended_gpus(*counts: int, cpus: int) -> Iterator[list[Any]]:
    """One more node for each count of GPUs, with so many CPU slots, inside the block; they may be ended before (`end`)."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    nodes = []
    try:
        for count in counts:
            asked = RayParams(
                gcs_address=ray.get_runtime_context().gcs_address,
                num_cpus=cpus,
                num_gpus=count,
                object_store_memory=100 * 2**20,
                node_manager_port=0,
                min_worker_port=0,
                max_worker_port=0,
                include_log_monitor=False,
            )
            asked.dashboard_agent_listen_port = None
            with patch.dict(os.environ, QUICK):
                nodes.append(Node(asked, head=False, shutdown_at_exit=False, spawn_reaper=False))
        yield nodes
    finally:
        end(nodes)


def end(nodes: list[Any]) -> None:
    """The end of some nodes, of which Ray has taken note: until then it would go on handing out their GPUs."""
    import ray

    gone = {node.node_id for node in nodes}
    while nodes:
        nodes.pop().kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
    while any(node["Alive"] and node["NodeID"] in gone for node in ray.nodes()):
        time.sleep(0.1)


class Actor:
    """In the place of any of a run's; here, where it imports next to nothing."""

    def sees(self) -> tuple[str, str, dict[str, str]]:
        """Its node, the GPUs that a process which it starts sees, and its variables."""
        import ray

        code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
        return ray.get_runtime_context().get_node_id(), told.strip(), dict(os.environ)
