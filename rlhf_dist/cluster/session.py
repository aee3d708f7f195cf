"""A Ray session: attached to a running cluster, or started here and stopped again."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path

from rlhf_dist.cluster import head, object_store, preflight, shared_memory
from rlhf_dist.cluster.rendezvous import knock
from rlhf_dist.cluster.token import keep_token
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.stopping import handlers_kept, held

NAMESPACE = "rlhf/"
"""What namespaces of runs begin with."""
FIRST_ACTORS = ("store", "learner-0")
"""One of these every run has that trains."""
ENDING_S = 10.0
"""So long the actors of a run that has just been killed may take to end."""
_start_ours: Callable[[], None] | None = None
"""Starts a cluster like the one that this process has started; None: it is attached to another, or to none."""


def namespace_of(run: Path) -> str:
    """The Ray namespace of a run's named actors: its folder's name, which others may have, and a digest of where that lies."""
    path = run.resolve()
    where = blake2b(f"{socket.gethostname()}:{path}".encode(errors="surrogateescape"), digest_size=3).hexdigest()
    return f"{NAMESPACE}{path.name}-{where}"


def runs_on_cluster(*having: str) -> list[str]:
    """Namespaces, less what all begin with, of runs that have an actor of one of these names on our cluster."""
    from ray.util import list_named_actors

    actors = list_named_actors(all_namespaces=True)
    return sorted({each["namespace"].removeprefix(NAMESPACE) for each in actors if each["name"] in having})


@contextmanager
def session(
    settings: Cluster, *, cpus: float, gpus: float, namespace: str, processes: float = 0, store_bytes: float = 0
) -> Iterator[None]:
    """Be connected to Ray inside the block; within another session, that one serves.

    Args:
        settings: which cluster.
        cpus: CPU slots that the run's actors ask for.
        gpus: GPUs that they ask for, where the cluster has any.
        namespace: of the run's named actors.
        processes: of these actors, their children included; 0: unknown.
        store_bytes: that the run holds in the object store at once; 0: unknown.

    Raises:
        EnvironmentProblem: a port is taken, Python's path has a space, Ray does not start, no cluster answers, or it is small.
    """
    if " " in sys.executable:
        raise EnvironmentProblem(
            f"{sys.executable}: there is a space in Python's path, and Ray cannot start workers from such a path; "
            "put the environment into a folder without one"
        )
    # The child processes of an actor (tensor-parallel engines) end with it, also when it is killed.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts workers at niceness 15: anything else on the machine would starve them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What a lost actor leaves unanswered, our own errors tell.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # By default Ray's head remembers 100,000 calls, and the names of a million before them: it would grow for hours.
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "1000")
    os.environ.setdefault("RAY_task_events_max_dropped_task_attempts_tracked_per_job_in_gcs", "1000")
    global _start_ours
    import ray

    if ray.is_initialized():  # a stage of a pipeline, whose session goes on after it
        check_size(cpus, gpus if has_gpus() else 0)
        object_store.check_cluster(store_bytes)
        yield
        return
    try:
        if settings.address is None:
            preflight.check(settings, processes)
            keep_token()
            _start_ours = partial(_start_local, settings, cpus, namespace, store_bytes)
            _start_ours()
        else:
            with handlers_kept():
                attach(settings.address, namespace)
                check_alone(namespace)
        _reap_ourselves()
        check_size(cpus, gpus if has_gpus() else 0)
        object_store.check_cluster(store_bytes)
        yield
    finally:
        _start_ours = None
        head.shut_down()
        shared_memory.sweep()


def start_anew() -> bool:
    """Start another cluster in the place of the one that this process had started and that is gone; False: it was not ours.

    Raises:
        EnvironmentProblem: Ray does not start.
    """
    if _start_ours is None:
        return False
    head.shut_down()
    shared_memory.sweep()
    _start_ours()
    _reap_ourselves()
    return True


def _reap_ourselves() -> None:
    """Ray's reaping makes this process ignore SIGCHLD, and then the exit code of every child of ours would read 0."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _quiet() -> None:
    """Keep what Ray tells of lost actors and of itself out of the terminal: it is in Ray's own logs, and our errors say it.

    Ray offers a log level for what it logs. What its processes publish as errors it prints, whatever the level, unless a
    debugger has taken the terminal.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False


def has_gpus() -> bool:
    """Whether the Ray cluster that we are connected to has GPUs, or, not connected, this machine."""
    import ray

    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    import torch

    return torch.cuda.is_available()


def cores_per_gpu() -> float:
    """CPU slots for each GPU, on that node of our cluster that has fewest; without GPUs 0.

    One slot of each node is nobody's: Ray's own processes, store, drivers and other jobs need some.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return float(min((max(0.0, node.get("CPU", 0.0) - 1) / node["GPU"] for node in nodes), default=0.0))


def _start_local(settings: Cluster, cpus: float, namespace: str, store_bytes: float) -> None:
    import ray

    size = object_store.size_here(settings, store_bytes)
    _quiet()
    try:
        with held():  # a half-started Ray would not be ended by anybody
            ray.init(
                address="local",  # not another cluster that happens to run on this machine
                num_cpus=max(math.ceil(cpus), os.cpu_count() or 1),
                object_store_memory=size,
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                dashboard_port=settings.dashboard_port if settings.dashboard else None,
                namespace=namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                _metrics_export_port=settings.metrics_port,
            )
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EnvironmentProblem(f"Ray did not start on this machine: {reason}") from error


def attach(address: str, namespace: str) -> None:
    """Connect to a running cluster.

    Raises:
        EnvironmentProblem: none answers, or it wants another token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    host, _, port = address.rpartition(":")
    if port.isdigit() and (problem := knock((host, int(port)))):  # Ray itself would try for minutes
        raise _no_cluster(address, problem)
    _quiet()
    try:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except AuthenticationError as error:
        raise EnvironmentProblem(
            f"the Ray cluster at {address!r} refused our token: {error}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to "
            "the file that the cluster was started with"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, problem: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cluster.address is {address!r}, but no Ray cluster answers there: {problem}. Start one with `ray start --head`, "
        "or leave the address out to start one here"
    )


def check_alone(namespace: str) -> None:
    """Refuse a run whose actors already live on the cluster: theirs would be its own.

    Raises:
        EnvironmentProblem: names the run.
    """
    name = namespace.removeprefix(NAMESPACE)
    deadline = time.monotonic() + ENDING_S
    while name in runs_on_cluster(*FIRST_ACTORS):
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"the run {name} is going on at this Ray cluster, and its folder can have one run at a time; stop it, wait for "
                "its end, or choose another run_dir"
            )
        time.sleep(0.5)


def check_size(cpus: float, gpus: float) -> None:
    """Refuse a cluster that could never start the run.

    Raises:
        EnvironmentProblem: says what is there, what is asked for, and which settings ask for less.
    """
    import ray

    there = ray.cluster_resources()
    for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
        if there.get(kind, 0) < wanted:
            raise EnvironmentProblem(
                f"the Ray cluster has {there.get(kind, 0):g} {kind}s; this run's actors ask for {wanted:g}. "
                "Lower learner.ranks, rollout.workers or scoring.*_workers, let them share devices (cluster.placement "
                "colocated or hybrid), or add nodes"
            )
