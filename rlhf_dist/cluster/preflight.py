"""What would keep Ray from starting here, found before it tries: Ray itself says it late, in many words, or in wrong ones."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem

MIB = 2**20
LONGEST = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""Characters of the folder below which Ray puts its sockets; the path of a socket has 107 at most."""
FREE_MIB = 100
PROCESS_MIB = 650
"""What a process takes that has imported Ray and torch, before it loads a model."""
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limit and use are told, of either version, and what of the use is a cache that gives way."""


def check(settings: Cluster, processes: float) -> None:
    """Refuse what a Ray that is started here would fail of.

    Args:
        settings: of the cluster to start.
        processes: that the run starts, beside Ray's own; 0: unknown.

    Raises:
        EnvironmentProblem: too little memory, a busy port, or no folder for Ray's sockets; says what to change.
    """
    check_memory(processes)
    if settings.dashboard:
        check_port_free("cluster.dashboard_port", settings.dashboard_port, "127.0.0.1")
    if settings.metrics_port is not None:
        check_port_free("cluster.metrics_port", settings.metrics_port, "0.0.0.0")
    choose_temp_folder()


def check_port_free(key: str, port: int, host: str) -> None:
    """Refuse a port that someone listens on.

    Raises:
        EnvironmentProblem: names the key to change.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EnvironmentProblem(
                f"{key} {port} is busy ({error.strerror}); choose another, or stop what listens there"
            ) from error


def choose_temp_folder() -> None:
    """Have Ray's sockets and logs in a folder that takes them: where `TMPDIR` is too long for sockets, in /tmp.

    Raises:
        EnvironmentProblem: the folder cannot be written to, is full, or `RAY_TMPDIR` is too long.
    """
    key = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "the temporary folder")
    folder = os.environ.get(key, "/tmp")
    if len(os.fsencode(folder)) > LONGEST:
        if key == "RAY_TMPDIR":
            raise EnvironmentProblem(
                f"RAY_TMPDIR is {folder}, {len(os.fsencode(folder))} characters long; expected at most {LONGEST}, since "
                "the paths of Ray's sockets below it may have 107"
            )
        os.environ["RAY_TMPDIR"] = folder = "/tmp"
    root = Path(folder).absolute() / "ray"
    there = next(each for each in (root, *root.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise EnvironmentProblem(
            f"{key} is {folder}, and Ray cannot write its sockets and logs there: {there} is "
            f"{'read-only' if there.is_dir() else 'no folder'}; set RAY_TMPDIR to a short path that can be written to"
        )
    free = shutil.disk_usage(there).free
    if free < FREE_MIB * MIB:
        raise EnvironmentProblem(
            f"{there} has {free / MIB:.0f} MiB free, and Ray's sockets and logs go there; expected at least {FREE_MIB}: free "
            "some space, or set RAY_TMPDIR"
        )


def available_bytes() -> int:
    """Memory that is free for more processes: the machine's, or what its container has left."""
    import psutil

    found = int(psutil.virtual_memory().available)
    for folder, limit, used, cache in CGROUPS:
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found = min(found, int(text) - int((folder / used).read_text()) + int(told.get(cache, 0)))
    return max(found, 0)


def check_memory(processes: float) -> None:
    """Refuse more processes than this machine has memory for.

    Args:
        processes: that the run starts, beside Ray's own.

    Raises:
        EnvironmentProblem: names the settings that ask for less.
    """
    free = available_bytes()
    if processes * PROCESS_MIB * MIB > free:
        raise EnvironmentProblem(
            f"this run starts {processes:g} processes, each of which takes some {PROCESS_MIB} MiB before it loads a model, and "
            f"{free / MIB:.0f} MiB of memory are available here. Lower learner.ranks, rollout.workers or scoring.*_workers, or "
            "stop what else runs here"
        )
