"""A run is planned before it starts."""

from typing import Any

import pytest

from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.plan import Machines, make_plan
from rlhf_dist.stages import fitting
from rlhf_dist.stages.fitting import check_room
from tests.planning.test_memory import SIZES, config


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, gigabytes: float) -> None:
    """In the place of this one."""

    def here(settings: Any, sizes: Any) -> Any:
        return make_plan(settings, Machines(1, gpus, gigabytes, 64), sizes)

    monkeypatch.setattr(fitting, "here", here)


def test_what_has_no_room_on_gpus_is_refused_and_on_cpus_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    machine(monkeypatch, gpus=8, gigabytes=80)
    check_room(config(), SIZES, told.append)
    assert told == []
    machine(monkeypatch, gpus=8, gigabytes=0.5)
    with pytest.raises(ConfigError, match=r"does not fit: node 0 device 0 .* needs .* GiB of 0.5"):
        check_room(config(), SIZES, told.append)
    machine(monkeypatch, gpus=0, gigabytes=0.5)
    check_room(config(), SIZES, told.append)
    assert "memory may not be enough: node 0" in told[0]


def test_of_another_cluster_nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=8, gigabytes=0.5)
    check_room(config(cluster={"address": "10.0.0.1:6379"}), SIZES, print)
