"""Faults of the machine are named before Ray is asked for anything."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from rlhf_dist.cluster import preflight
from rlhf_dist.cluster.preflight import MIB, available_bytes, check, check_memory, check_port_free, choose_temp_folder
from rlhf_dist.config import Cluster
from rlhf_dist.errors import EnvironmentProblem

LONG = "/tmp/" + "x" * 100


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)


def test_a_busy_port_is_named_and_is_free_again_afterwards() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(EnvironmentProblem, match=rf"cluster.some_port {port} is busy"):
                check_port_free("cluster.some_port", port, host)
    check_port_free("cluster.some_port", port, "0.0.0.0")


@pytest.mark.parametrize("key", ["dashboard_port", "metrics_port"])
def test_whoever_told_ray_to_use_a_busy_port_is_told_the_key(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=rf"cluster.{key} {port} is busy"):
            check(Cluster(dashboard=True).model_copy(update={key: port}), 0)


def test_sockets_go_where_their_paths_are_short_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    choose_temp_folder()
    assert "RAY_TMPDIR" not in os.environ
    monkeypatch.setenv("TMPDIR", LONG)
    choose_temp_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    with pytest.raises(EnvironmentProblem, match=rf"RAY_TMPDIR is {LONG}, 105 characters long; expected at most 39"):
        choose_temp_folder()
    monkeypatch.setattr(preflight, "LONGEST", 1000)
    choose_temp_folder()
    assert not Path(LONG).exists()


def test_a_folder_that_takes_no_sockets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ray").touch()
    monkeypatch.setattr(preflight, "LONGEST", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=rf"{tmp_path}/ray is no folder; set RAY_TMPDIR"):
        choose_temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    with pytest.raises(EnvironmentProblem, match=r"/proc is read-only"):
        choose_temp_folder()


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/tmp")._replace(free=99 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EnvironmentProblem, match=r"has 99 MiB free, .*; expected at least 100"):
        choose_temp_folder()


def test_more_processes_than_there_is_memory_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_bytes", lambda: 3 * 650 * MIB)
    check_memory(3)
    with pytest.raises(EnvironmentProblem, match=r"starts 4 processes, .* 1950 MiB of memory .* Lower learner.ranks"):
        check_memory(4)
    with pytest.raises(EnvironmentProblem, match="starts 4 processes"):
        check(Cluster(), 4)


def test_a_container_has_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "CGROUPS", [(tmp_path, "limit", "used", "inactive_file")])
    machine = available_bytes()
    (tmp_path / "limit").write_text("max\n")
    (tmp_path / "used").write_text(f"{900 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {200 * MIB}\n")
    assert available_bytes() == pytest.approx(machine, rel=0.2)
    (tmp_path / "limit").write_text(f"{1000 * MIB}\n")
    assert available_bytes() == 300 * MIB
