"""A Ray session: attached to a running cluster, or started here and stopped again."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_dist.cluster import head
from rlhf_dist.cluster.rendezvous import knock
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.stopping import handlers_kept

NAMESPACE = "rlhf/"
"""What namespaces of runs begin with."""


def namespace_of(run: Path) -> str:
    """The Ray namespace of a run's named actors."""
    return f"{NAMESPACE}{run.resolve().name}"


@contextmanager
def session(settings: Cluster, *, cpus: float, gpus: float, namespace: str) -> Iterator[None]:
    """Be connected to Ray inside the block; within another session, that one serves.

    Args:
        settings: which cluster.
        cpus: CPU slots that the run's actors ask for.
        gpus: GPUs that they ask for.
        namespace: of the run's named actors.

    Raises:
        EnvironmentProblem: the dashboard's port is taken, Python's path has a space, no cluster answers, or it is too small.
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
    import ray

    if ray.is_initialized():  # a stage of a pipeline, whose session goes on after it
        check_size(cpus, gpus)
        yield
        return
    with handlers_kept():
        if settings.address is None:
            _start_local(settings, cpus, namespace)
        else:
            attach(settings.address, namespace)
    # Ray's reaping makes this process ignore SIGCHLD, and then the exit code of every child of ours would read 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        check_size(cpus, gpus)
        yield
    finally:
        head.shut_down()


def has_gpus() -> bool:
    """Whether the Ray cluster that we are connected to has GPUs, or, not connected, this machine."""
    import ray

    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))
    import torch

    return torch.cuda.is_available()


def _start_local(settings: Cluster, cpus: float, namespace: str) -> None:
    import ray

    if settings.dashboard:
        check_port_free(settings.dashboard_port)
    ray.init(
        address="local",  # not another cluster that happens to run on this machine
        num_cpus=max(math.ceil(cpus), os.cpu_count() or 1),
        object_store_memory=settings.object_store_mib * 2**20,
        include_dashboard=settings.dashboard,
        dashboard_host="127.0.0.1",
        dashboard_port=settings.dashboard_port if settings.dashboard else None,
        namespace=namespace,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
        _metrics_export_port=settings.metrics_port,
    )


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


def check_port_free(port: int) -> None:
    """Refuse a port that someone listens on.

    Raises:
        EnvironmentProblem: names the key to change.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentProblem(
                f"cluster.dashboard_port {port} is busy ({error.strerror}); choose another, or stop what listens there"
            ) from error


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
