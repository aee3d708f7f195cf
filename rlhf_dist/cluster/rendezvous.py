"""How learner ranks on several nodes find each other, and how one tells early that they cannot.

A collective between nodes that cannot reach each other hangs until its timeout. So each rank opens a door first, and the others
knock.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

KNOCK_S = 10.0
"""Seconds granted to one attempt to connect."""


class Door:
    """A listening socket on this node's address; its port is free for the rendezvous once the door is closed."""

    def __init__(self) -> None:
        """Listen, and answer everyone who knocks."""
        import ray

        self._socket = socket.create_server((ray.util.get_node_ip_address(), 0), backlog=1024)
        host, port = self._socket.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self._doorman = threading.Thread(target=self._answer, daemon=True)
        self._doorman.start()

    def close(self) -> None:
        """Stop listening; the port is free when this returns."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._doorman.join()
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            with visitor:
                visitor.settimeout(KNOCK_S)
                # Who closes first keeps the port in TIME_WAIT: let it be the visitor.
                with suppress(OSError):
                    visitor.recv(1)


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
