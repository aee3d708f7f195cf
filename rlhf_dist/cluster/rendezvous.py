"""How learner ranks on several nodes find each other, and how one tells early that they cannot.

A collective between nodes that cannot reach each other hangs until its timeout. So each rank opens a door first, and the others
knock.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

LOOPBACK = "127.0.0.1"

KNOCK_S = 10.0
"""Seconds granted to one attempt to connect."""


class Door:
    """A listening socket on one address of this node, which becomes that of the rendezvous."""

    def __init__(self, host: str) -> None:
        """Listen on a free port, and answer everyone who knocks."""
        self.socket = socket.create_server((host, 0), backlog=1024)
        host, port = self.socket.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self._over = False
        self._doorman = threading.Thread(target=self._answer, daemon=True)
        self._doorman.start()

    def shut(self) -> None:
        """Answer nobody any more. The socket goes on listening: whoever connects from now on waits for the rendezvous."""
        self._over = True
        knock(self.address)  # wakes the doorman
        self._doorman.join()
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:  # who knocked while he was busy
                self.socket.accept()[0].close()
        self.socket.setblocking(True)

    def _answer(self) -> None:
        while not self._over:
            visitor, _ = self.socket.accept()
            with visitor:
                visitor.settimeout(KNOCK_S)
                # Who closes first keeps the port in TIME_WAIT: let it be the visitor.
                with suppress(OSError):
                    visitor.recv(1)


def key_store(door: Door, host: str, port: int, *, rank: int, ranks: int, timeout_s: float) -> Any:
    """Torch's store of keys, at which the ranks of a group meet: the first one's serves, on the address of its door alone.

    Torch would have it listen on all interfaces, where whoever reaches the port reads and writes keys.
    """
    from torch import distributed

    kind: Any = vars(distributed)["TCPStore"]  # its stubs do not name it
    timeout = timedelta(seconds=timeout_s)
    if rank > 0:
        door.socket.close()
        return kind(host, port, ranks, is_master=False, timeout=timeout)
    return kind(
        host, port, ranks, is_master=True, timeout=timeout, master_listen_fd=door.socket.detach(), use_libuv=True
    )


def host_for(addresses: Sequence[str]) -> str | None:
    """The address for processes on these nodes to listen on: loopback where all are on one; None: each node's own."""
    return LOOPBACK if len(set(addresses)) == 1 else None


def knock(door: tuple[str, int], *, timeout_s: float = KNOCK_S) -> str | None:
    """Connect to a door; what went wrong, or None."""
    try:
        with socket.create_connection(door, timeout=timeout_s):
            return None
    except OSError as error:
        return f"cannot reach {door[0]}:{door[1]} ({error})"


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None where no interface has it."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return str(name)
    return None


def choose_interface(address: str, wanted: str | None) -> None:
    """Tell Gloo and NCCL which interface to use, unless the environment does: the wanted one, or that of the address.

    Raises:
        EnvironmentProblem: there is no such interface on this node.
    """
    from rlhf_dist.errors import EnvironmentProblem

    if wanted is not None and wanted not in dict(socket.if_nameindex()).values():
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise EnvironmentProblem(f"cluster.interface is {wanted!r}; {socket.gethostname()} has {names}")
    found = wanted or interface_of(address)
    if found is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", found)
