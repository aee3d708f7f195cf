"""Which moments of a learner are kept, at what cost, and where a run goes back to. Real snapshots: tests/integration."""

from typing import Any

import pytest

from rlhf_dist.learner.memory import SHARE, Memory
from rlhf_dist.learner.snapshot import Cost


class Moment:
    """A snapshot that is whole when the test says so."""

    def __init__(self, number: int, taken: float, cost: Cost, whole: bool) -> None:
        self.number, self.taken, self._cost, self.whole = number, taken, cost, whole

    def is_whole(self) -> bool:
        return self.whole

    def cost(self) -> Cost:
        return self._cost


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.cost, self.whole = Cost(0.1, 100), True
        self.made: list[Moment] = []
        self.restored: list[int] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    # learner
    def snapshot(self) -> Any:
        self.made.append(Moment(len(self.made), self.now, self.cost, self.whole))
        return self.made[-1]

    def state_bytes(self) -> int:
        return self.cost.num_bytes

    def restore(self, moment: Moment) -> None:
        self.restored.append(moment.number)

    def keep(self, memory: Memory[str], *seconds: float) -> None:
        learner: Any = self
        for each in seconds:
            memory.keep(learner, f"at {self.now:g}")
            self.now += each


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_snapshots_come_as_often_as_they_cost_little(world: World) -> None:
    memory: Memory[str] = Memory(10_000)
    world.keep(memory, *[1.0] * 100)
    assert len(world.made) == pytest.approx(100 * SHARE / 0.1, abs=1)
    world.cost = Cost(0.0001, 100)
    world.keep(memory, *[1.0] * 20)
    assert len(world.made) > 20


def test_the_next_one_waits_until_the_last_is_whole_and_that_one_serves_meanwhile(world: World) -> None:
    world.cost = Cost(0.001, 100)
    memory: Memory[str] = Memory(10_000)
    world.keep(memory, 10.0)
    world.whole = False
    world.keep(memory, 10.0, 10.0, 10.0)
    assert len(world.made) == 2
    kept = memory.newest()
    assert kept is not None
    assert kept.state == "at 1000"
    world.made[-1].whole = True
    kept = memory.newest()
    assert kept is not None
    assert kept.state == "at 1010"


def test_none_is_made_that_would_fill_the_object_store(world: World) -> None:
    world.cost = Cost(0.001, 300)
    memory: Memory[str] = Memory(1000)
    world.keep(memory, *[10.0] * 5)
    assert not world.made
    assert memory.newest() is None


def test_one_that_grew_is_not_made_again(world: World) -> None:
    """An optimiser has no moments before its first step."""
    world.cost = Cost(0.001, 100)
    memory: Memory[str] = Memory(1000)
    world.keep(memory, 10.0)
    world.cost = Cost(0.001, 300)
    world.keep(memory, *[10.0] * 5)
    assert len(world.made) == 1
    assert memory.newest() is None


def test_what_goes_back_keeps_the_last_moments_whatever_they_cost(world: World) -> None:
    world.cost = Cost(100.0, 10**9)
    memory, learner = Memory[str](1000, every=2), world
    world.keep(memory, *[1.0] * 4)
    assert [each.snapshot.number for each in memory._kept] == [2, 3]
    memory.back(learner, 1)
    memory.back(learner, 2)
    memory.back(learner, 2)
    assert world.restored == [3, 2, 2], "it cannot go back behind the oldest that is kept"
    kept = memory.newest()
    assert kept is not None
    assert kept.state == "at 1002"


def test_nothing_is_remembered_after_it_was_cleared(world: World) -> None:
    memory: Memory[str] = Memory(10_000)
    world.keep(memory, 1.0)
    memory.clear()
    assert memory.newest() is None
