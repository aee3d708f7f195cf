"""Slurm on this machine, from Debian's packages: munged, slurmctld and slurmd with a configuration of their own."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MpiDefault=none
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why Slurm cannot run here; None where it can."""
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: install Debian's slurm-wlm and munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """A cluster of one node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        for path in (self.folder, munge, munge / "key"):
            shutil.chown(path, "munge", "munge") if path != self.folder else path.chmod(0o755)
        files = {name: munge / name for name in ("socket", "key", "pid", "log", "seed")}
        flags = {"socket": "socket", "key": "key-file", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
        options = [f"--{flags[name]}={path}" for name, path in files.items()]
        self._spawn(["runuser", "-u", "munge", "--", "munged", "--foreground", *options], "munged")
        ports = {name: _free_port() for name in ("port", "node_port")}
        text = CONFIG.format(host=socket.gethostname(), folder=self.folder, cpus=os.cpu_count(), **ports)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        (self.folder / "spool").mkdir()
        self._wait(lambda: (munge / "socket").exists(), "munged")
        self._spawn(["slurmctld", "-D"], "slurmctld")
        # Jobs end with `ray stop`, which ends every Ray process that it sees: let it see its own only.
        self._spawn(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "slurmd", "-D"], "slurmd")
        self._wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t", check=False), "a node in state idle")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *command: str, cwd: Path) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *command],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            (daemon.kill if daemon.args[0] == "unshare" else daemon.terminate)()  # `unshare` heeds nothing else
            daemon.wait()

    def _spawn(self, command: list[str], name: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as file:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=file, stderr=file))

    def _wait(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            told = "".join(file.read_text()[-2000:] for file in self.folder.glob("*.out"))
            assert time.monotonic() < deadline, f"no {what} within 60 s\n{told}"
            time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    made = Slurm(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
