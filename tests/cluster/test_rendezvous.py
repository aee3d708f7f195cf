import os
import socket

import pytest

from rlhf_dist.cluster.rendezvous import Door, choose_interface, interface_of, knock
from rlhf_dist.errors import EnvironmentProblem


def test_an_open_door_is_reached_many_times_and_its_port_is_free_once_it_is_closed() -> None:
    door = Door()
    assert [knock(door.address) for _ in range(5)] == [None] * 5
    door.close()
    assert f"cannot reach {door.address[0]}:{door.address[1]}" in str(knock(door.address))
    with socket.socket() as again:
        again.bind(door.address)


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None


def test_interfaces_are_told_to_gloo_and_nccl_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    choose_interface("127.0.0.1", None)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")


def test_an_interface_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(EnvironmentProblem, match=r"cluster.interface is 'eth99'; .* has .*lo"):
        choose_interface("127.0.0.1", "eth99")
