"""`launch/ssh.sh` with an ssh that stays on this machine: what it starts and stops; tests/integration has real hosts."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Hosts:
    """Hosts `one` and `two`, on which Ray only notes what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, folder / "told"
        self.told.touch()
        (folder / "hosts.txt").write_text("one\ntwo\n")
        (folder / "launch").symlink_to(ROOT / "launch")
        self._script("ssh", 'export HOST=$5 HOME=$FOLDER SSH_CONNECTION="192.0.2.9 1 192.0.2.1 22"; exec bash -s')
        self._script("pgrep", '[[ " $RUNNING " == *" $HOST "* ]]')
        self._script("ray", 'echo "$HOST $1 $2" >>$FOLDER/told; [[ "$1 $HOST" != "start $BROKEN" ]]')
        self._script("rlhf-dist", 'echo "$HOST run" >>$FOLDER/told')

    def _script(self, name: str, text: str) -> None:
        file = self.folder / ".venv" / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def launch(self, *arguments: str, **state: str) -> tuple[int, str]:
        """Exit code and errors of a call where `RUNNING` hosts have a Ray, and it does not start on the `BROKEN` one."""
        environment = {
            "PATH": f"{self.folder}/.venv/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "FOLDER": str(self.folder),
            "RLHF_DIR": str(self.folder),
            "RLHF_TOKEN_FILE": str(self.folder / "token"),
            "RUNNING": "",
            "BROKEN": "",
            **state,
        }
        command = ["bash", str(ROOT / "launch" / "ssh.sh"), str(self.folder / "hosts.txt"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr

    def calls(self) -> list[str]:
        """What was called where."""
        return [" ".join(line.split()[:2]) for line in self.told.read_text().splitlines()]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_a_run_starts_a_cluster_and_stops_it(hosts: Hosts) -> None:
    assert hosts.launch("rl", "file") == (0, "")
    assert hosts.calls() == ["one start", "two start", "one run", "one stop", "two stop"]


def test_a_cluster_without_a_run_stays_until_it_is_stopped(hosts: Hosts) -> None:
    assert hosts.launch() == (0, "")
    assert hosts.calls() == ["one start", "two start"]
    assert hosts.launch("--stop", RUNNING="one two") == (0, "")
    assert hosts.calls()[2:] == ["one stop", "two stop"]


@pytest.mark.parametrize(("running", "touched"), [("one two", []), ("two", ["one start", "one stop"])])
def test_a_ray_that_was_there_is_left_alone(hosts: Hosts, running: str, touched: list[str]) -> None:
    code, said = hosts.launch("rl", "file", RUNNING=running)
    assert code == 1
    assert "error: a Ray of yours is running on" in said
    assert f"error: Ray was not started on {running.split()[0]}" in said
    assert hosts.calls() == touched


def test_a_host_where_ray_starts_half_is_stopped_too(hosts: Hosts) -> None:
    code, said = hosts.launch("rl", "file", BROKEN="two")
    assert code == 1
    assert "error: Ray did not start on two" in said
    assert hosts.calls() == ["one start", "two start", "one stop", "two stop"]
