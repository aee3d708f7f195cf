"""A run is planned before it starts."""

from dataclasses import replace

import pytest

from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.plan import Machines
from rlhf_dist.stages import fitting
from rlhf_dist.stages.fitting import check_room
from tests.planning.test_memory import SIZES, config
from tests.planning.test_plan import SIZE, rl


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, gigabytes: float) -> None:
    """In the place of this one."""
    monkeypatch.setattr(fitting, "this_machine", lambda *_: Machines(1, gpus, gigabytes, 64))


def test_what_has_no_room_on_gpus_is_refused_with_what_would_have_and_on_cpus_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    machine(monkeypatch, gpus=8, gigabytes=80)
    check_room(config(), SIZES, told.append)
    assert told == []
    machine(monkeypatch, gpus=8, gigabytes=0.5)
    with pytest.raises(ConfigError, match=r"does not fit: node 0 device 0 .* needs .* of 0.5.* nothing that was tried"):
        check_room(config(), SIZES, told.append)
    machine(monkeypatch, gpus=16, gigabytes=80)
    sizes = {**dict.fromkeys(SIZES, SIZE), "reference": replace(SIZE, parameters=45 * 10**9)}
    with pytest.raises(ConfigError, match=r"it would fit with `--set scoring.reference_on=learner`; `rlhf-dist plan`"):
        check_room(rl(learner={"ranks": 8}), sizes, told.append)
    check_room(rl(learner={"ranks": 8}, scoring={"reference_on": "learner"}), sizes, told.append)
    machine(monkeypatch, gpus=0, gigabytes=0.5)
    check_room(config(), SIZES, told.append)
    assert "memory may not be enough: node 0" in told[0]


def test_of_another_cluster_nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=8, gigabytes=0.5)
    check_room(config(cluster={"address": "10.0.0.1:6379"}), SIZES, print)
