import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_dist.cluster.rendezvous import Door, choose_interface, host_for, interface_of, key_store, knock
from rlhf_dist.errors import EnvironmentProblem


def test_an_open_door_is_reached_many_times_and_its_socket_goes_on_listening() -> None:
    door = Door("127.0.0.1")
    assert [knock(door.address) for _ in range(5)] == [None] * 5
    door.shut()
    with socket.create_connection(door.address) as visitor:
        answered, _ = door.socket.accept()
        with answered:
            visitor.sendall(b"for the next owner")
            assert answered.recv(100) == b"for the next owner"
    door.socket.close()
    assert f"cannot reach 127.0.0.1:{door.address[1]}" in str(knock(door.address))


def test_ranks_meet_at_a_store_that_nobody_else_reaches() -> None:
    doors = [Door("127.0.0.2") for _ in range(2)]
    host, port = doors[0].address
    for door in doors:
        door.shut()
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(key_store, door, host, port, rank=rank, ranks=2, timeout_s=30)
            for rank, door in enumerate(doors)
        ]
        first, second = (each.result() for each in made)
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert knock((host, port)) is None
    assert "cannot reach" in str(knock(("127.0.0.1", port)))  # any other address of this machine


def test_those_on_one_node_meet_on_loopback() -> None:
    assert host_for(["10.0.0.1", "10.0.0.1"]) == "127.0.0.1"
    assert host_for(["10.0.0.1", "10.0.0.2"]) is None


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
