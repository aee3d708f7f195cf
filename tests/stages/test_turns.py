"""In which order those who share devices give them to each other; the real ones: tests/integration/test_rl_run.py."""

from typing import Any

import pytest

from rlhf_dist.stages import turns
from rlhf_dist.stages.turns import SharedDevices


class World:
    """Learner, engines and scorers, which note what they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name, said in (("everyone", "engines sleep"), ("rest", "scorers rest"), ("wake", "scorers wake")):
            monkeypatch.setattr(turns, name, self.noting(said))

    def noting(self, said: str) -> Any:
        return lambda *_, **__: self.calls.append(said)

    def __getattr__(self, name: str) -> Any:
        return self.noting(name)


def test_memory_is_given_back_before_another_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world: Any = World(monkeypatch)
    shared = SharedDevices(world, {}, world, 1.0, 1.0)
    shared.to_others()
    to_others = ["offload", "scorers wake", "go_on"]
    assert world.calls == to_others
    shared.to_learner()
    to_learner = ["wait_for_fewest", "pause", "engines sleep", "scorers rest", "reload"]
    assert world.calls == [*to_others, *to_learner]
    shared.to_others()
    assert world.calls == [*to_others, *to_learner, *to_others]


def test_a_turn_that_one_has_already_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world: Any = World(monkeypatch)
    shared = SharedDevices(world, {}, world, 1.0, 1.0)
    shared.to_learner()
    assert "reload" not in world.calls, "it has just loaded"
    shared.to_others()
    world.calls.clear()
    shared.to_others()
    assert world.calls == []


def test_engines_with_devices_of_their_own_go_on_while_the_scorers_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    world: Any = World(monkeypatch)
    shared = SharedDevices(world, {}, None, 1.0, 1.0)
    shared.to_learner()
    shared.to_others()
    assert world.calls == ["scorers rest", "scorers wake"]
