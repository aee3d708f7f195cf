"""Several machines on one: network namespaces joined by a bridge, each a Ray node with an address of its own."""

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PORT = 6399
_NUMBERS = itertools.count()
BIN = Path(sys.executable).parent


def not_permitted() -> str | None:
    """Why there can be no network namespaces here; None where there can."""
    if shutil.which("ip") is None:
        return "no `ip` command; install iproute2"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"network namespaces are not permitted: {made.stderr.strip()}" if made.returncode else None


class Hosts:
    """A Ray cluster over namespaces; the first host is the head."""

    def __init__(self, count: int) -> None:
        self.count = count
        # The kernel takes a namespace down after its name is gone, so names are not used twice.
        number = next(_NUMBERS)
        self._id = f"rh{os.getpid() % 10000}{chr(97 + number)}"
        self._net = f"10.{77 + number}.{os.getpid() % 250}"
        self._temp = Path(tempfile.mkdtemp(prefix="rh"))
        token = self._temp / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            # No name server answers in there; who asks all the same shall not wait for it.
            "RES_OPTIONS": "timeout:1 attempts:1",
        }

    def address(self, host: int) -> str:
        return f"{self._net}.{host + 1}"

    @property
    def cluster(self) -> str:
        return f"{self.address(0)}:{PORT}"

    def build(self) -> None:
        bridge = f"{self._id}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in range(self.count):
            name, outer = self._name(host), f"{self._id}v{host}"
            _ip("netns", "add", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "e0", "netns", name)
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "e0")
            for device in ("e0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", f"{self._net}.254")

    def start_node(self, host: int, *, cpus: int) -> None:
        """Start Ray on a host: the head on the first, a node that joins it on the others."""
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host == 0 else [f"--address={self.cluster}"]
        sizes = [f"--num-cpus={cpus}", "--object-store-memory=100000000", f'--resources={{"host{host}": 1}}']
        where = [f"--node-ip-address={self.address(host)}", f"--temp-dir={self._temp}"]
        self.run(host, [str(BIN / "ray"), "start", *role, *where, *sizes], timeout=120)

    def run(self, host: int, command: Sequence[str], *, timeout: float) -> str:
        full = ["ip", "netns", "exec", self._name(host), *command]
        done = subprocess.run(full, capture_output=True, text=True, env=self.environment, timeout=timeout, check=False)
        assert done.returncode == 0, f"{command} on host {host}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def spawn(self, host: int, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        full = ["ip", "netns", "exec", self._name(host), *command]
        with output.open("wb") as file:
            return subprocess.Popen(full, stdout=file, stderr=subprocess.STDOUT, env=self.environment)

    def kill(self, host: int) -> None:
        """The power cut: every process of a host dies at once."""
        listed = subprocess.run(["ip", "netns", "pids", self._name(host)], capture_output=True, text=True, check=False)
        for pid in map(int, listed.stdout.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def block(self, one: int, other: int) -> None:
        """A firewall between two hosts; both still reach the others."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", self._name(here), "route", "add", "prohibit", f"{self.address(there)}/32")

    def destroy(self) -> None:
        for host in range(self.count):
            self.kill(host)
            for thing in (["netns", "del", self._name(host)], ["link", "del", f"{self._id}v{host}"]):
                subprocess.run(["ip", *thing], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"{self._id}br"], check=False)
        shutil.rmtree(self._temp, ignore_errors=True)

    def _name(self, host: int) -> str:
        return f"{self._id}h{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    made = Hosts(count)
    try:
        made.build()
        yield made
    finally:
        made.destroy()
