"""`launch/ssh.sh` over real ssh, to two machines with an sshd and processes of their own each."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hosts import BIN, Hosts, hosts, not_permitted
from tests.runs import Folders, metrics, overrides

ROOT = Path(__file__).parents[2]
SSHD = Path("/usr/sbin/sshd")
REASON = not_permitted() or (None if SSHD.exists() else "no sshd; install openssh-server")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


class Machines:
    """Namespaces that answer to ssh as `one` and `two`, and the list of them."""

    def __init__(self, net: Hosts, folder: Path) -> None:
        self.net, self.list, self.home = net, folder / "hosts.txt", folder / "home"
        self.list.write_text("one  # the head\n\ntwo\n")
        self.project = folder / "project"
        self.project.mkdir()
        (self.project / "launch").symlink_to(ROOT / "launch")
        (self.project / ".venv").symlink_to(BIN.parent)
        self.home.mkdir()
        keys = [folder / "host_key", folder / "user_key"]
        for key in keys:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (folder / "authorized").write_text(keys[1].with_suffix(".pub").read_text())
        (folder / "sshd_config").write_text(
            f"HostKey {keys[0]}\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"SetEnv HOME={self.home}\n"
        )
        known = "".join(f"Host {name}\n  HostName {net.address(host)}\n" for host, name in enumerate(("one", "two")))
        (folder / "ssh_config").write_text(
            f"{known}Host *\n  IdentityFile {keys[1]}\n  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking no\n"
            "  LogLevel ERROR\n"
        )
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{ssh.parent}:{os.environ['PATH']}",
            "RLHF_TOKEN_FILE": str(folder / "token"),
            "RLHF_DIR": str(self.project),
            "RLHF_PORT": "6441",
        }
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it; only the package's service script makes it
        # `ray stop` ends every Ray process that it sees, so each machine sees its own only.
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        for host in (0, 1):
            net.spawn(host, [*alone, str(SSHD), "-D", "-e", "-f", f"{folder}/sshd_config"], folder / f"sshd{host}.log")

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "launch" / "ssh.sh"), str(self.list), *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=300, cwd=self.project
        )

    def ray_processes(self) -> int:
        found = subprocess.run(["pgrep", "-fc", f"gcs_server.*{self.environment['RLHF_PORT']}"], capture_output=True)
        return int(found.stdout)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with hosts(2) as net:
        made = Machines(net, tmp_path)
        deadline = time.monotonic() + 90
        while subprocess.run(["ssh", "one", "true"], env=made.environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (tmp_path / "sshd0.log").read_text()
            time.sleep(0.2)
        yield made


def test_a_run_on_two_machines_by_ssh_leaves_no_ray_behind(
    machines: Machines, folders: Folders, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {
        "policy": folders.policy,
        "reward": folders.reward,
        "prompts.path": folders.prompts,
        "prompts.max_tokens": 40,
        "rl.iterations": 2,
        "rl.prompts_per_iteration": 8,
        "rollout.engine": "transformers",
        "rollout.max_new_tokens": 12,
        "learner.micro_batch_tokens": 512,
        "learner.threads": 1,
    }
    file = tmp_path / "rl.yaml"
    file.write_text("{}\n")
    done = machines.launch("rl", str(file), "--run-dir", str(run), *overrides(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one has joined" in done.stdout
    assert "the cluster is up" in done.stdout
    assert [row["iteration"] for row in metrics(run)] == [0, 1]
    assert (machines.home / ".ray" / "rlhf_dist_token").stat().st_mode & 0o077 == 0
    assert machines.ray_processes() == 0


def test_a_host_without_the_project_is_named(machines: Machines) -> None:
    machines.environment["RLHF_DIR"] = "/nowhere"
    done = machines.launch()
    assert done.returncode == 1
    assert "error: no folder /nowhere on" in done.stderr
    assert "error: Ray was not started on one" in done.stderr


def test_a_host_that_does_not_answer_is_named(machines: Machines) -> None:
    machines.list.write_text("nobody.invalid\n")
    done = machines.launch()
    assert done.returncode == 1
    assert "cannot reach nobody.invalid by ssh" in done.stderr
