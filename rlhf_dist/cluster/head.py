"""Ray's own processes, without which nothing goes on: whether they are there, and what may be asked of Ray when they are not.

Whatever asks Ray's GCS for something when it is gone blocks for a minute, after which Ray ends the process from within.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import psutil

from rlhf_dist.cluster.rendezvous import knock

KNOCK_S = 2.0
KNOCKS = 3
"""So often in a row the head of another machine must be silent to count as gone."""
END_S = 5.0
"""Granted to what is killed to be gone."""
VITAL = ("gcs_server", "raylet")
_silent = 0


def fallen() -> str | None:
    """What of Ray is gone, in words; None where all is well, or where there is no Ray."""
    import ray

    if not ray.is_initialized():
        return None
    node: Any = ray._private.worker._global_node
    dead = [name for name, _ in node.dead_processes() if name in VITAL]
    if dead:
        return f"Ray's {dead[0]} died"
    return None if node.is_head() else _answers(ray.get_runtime_context().gcs_address)


def kill(actor: Any) -> None:
    """Kill an actor, unless Ray is gone and all actors with it."""
    import ray

    if fallen() is None:
        ray.kill(actor)


def shut_down() -> None:
    """Leave Ray, and end the cluster if it was started here."""
    import ray

    if fallen() is not None:
        node: Any = ray._private.worker._global_node
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        if node.is_head():
            _end_orphans(node.get_session_dir_path())
    ray.shutdown()


def _end_orphans(session: str) -> None:
    """Kill what a killed raylet leaves behind: its agents live on for a minute and keep their ports, who is stopped for ever.

    Args:
        session: the folder in which Ray's processes keep their logs.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.name().startswith("ray::") and process.uids().real == os.getuid()
            if ours and any(file.path.startswith(session) for file in process.open_files()):
                process.kill()
    # Ray makes this process the parent of orphans, so they wait for it to take note of their end.
    with suppress(psutil.Error):
        psutil.wait_procs(
            [each for each in psutil.Process().children() if each.name().startswith("ray")], timeout=END_S
        )


def _answers(address: str) -> str | None:
    global _silent
    host, _, port = address.rpartition(":")
    problem = knock((host, int(port)), timeout_s=KNOCK_S)
    _silent = _silent + 1 if problem else 0
    return f"Ray's head node is gone: {problem}" if _silent >= KNOCKS else None
