"""Who is found lost by his silence, on answers and a clock that the test controls. Real actors: tests/integration."""

from typing import Any

import pytest

from rlhf_dist.cluster.pulse import Beat, Pulse
from rlhf_dist.cluster.vigil import LOADING, SLEPT_S, Patience, Vigil
from rlhf_dist.errors import ClusterLost, WorkerLost

PATIENCE = Patience(hung_s=10, stalled_s=60, every_s=1)


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {}
        """By actor: what it answers to every question; without one it is silent."""
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("ray.wait", lambda refs, **_: ([ref for ref in refs if ref in self.answers], []))
        monkeypatch.setattr("rlhf_dist.cluster.head.fallen", lambda: self.fallen)
        self.fallen: str | None = None
        monkeypatch.setattr("rlhf_dist.cluster.vigil.result_of", self.result_of)
        self.vigil = Vigil(PATIENCE)
        self.lost: list[str] = []

    def result_of(self, ref: str, name: str, doing: str) -> Any:
        answer = self.answers[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def guard(self, name: str, *, needed: bool = False, loading: bool = False) -> None:
        def ask() -> str:
            self.asked.append(name)
            return name

        lost = None if needed else lambda error: self.lost.append(str(error))
        self.vigil.guard(name, ask, lost=lost, loading=loading)

    def go_on(self, seconds: float) -> bool:
        """Look as often as a wait does."""
        found = False
        for _ in range(round(seconds)):
            self.vigil.asked()
            self.now += 1
            found |= self.vigil.look()
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_who_answers_is_asked_again_every_second_and_nobody_is_asked_twice_at_once(world: World) -> None:
    world.guard("rollout-0")
    world.guard("rollout-1")
    world.answers["rollout-0"] = Beat(0, "")
    world.go_on(6)
    assert world.asked.count("rollout-0") in (3, 6)
    assert world.asked.count("rollout-1") == 1
    assert world.lost == []


def test_who_is_silent_is_lost_after_his_time_once(world: World) -> None:
    world.guard("rollout-0")
    world.vigil.meanwhile = "collecting the batch"
    assert not world.go_on(9)
    assert world.go_on(1)
    assert world.lost == ["rollout-0 hangs: no sign of life for 10 s while collecting the batch (timeouts.hung)"]
    assert not world.go_on(30)


def test_the_loss_of_who_is_needed_ends_the_wait(world: World) -> None:
    world.guard("store", needed=True)
    with pytest.raises(WorkerLost, match="store hangs"):
        world.go_on(10)


def test_a_death_is_known_with_the_next_answer(world: World) -> None:
    world.guard("rollout-0")
    world.answers["rollout-0"] = WorkerLost("rollout-0 died")
    assert world.go_on(1)
    assert world.lost == ["rollout-0 died"]


def test_who_works_must_get_on_and_who_waits_need_not(world: World) -> None:
    for name, beat in (("busy", Beat(5, "generating")), ("idle", Beat(5, ""))):
        world.guard(name)
        world.answers[name] = beat
    assert not world.go_on(60)
    assert world.go_on(2)
    assert world.lost == ["busy hangs: no progress for 60 s while generating (timeouts.stalled)"]


def test_a_step_is_progress(world: World) -> None:
    world.guard("busy")
    for step in range(5):
        world.answers["busy"] = Beat(step, "generating")
        world.go_on(50)
    assert world.lost == []


def test_who_loads_counts_from_his_first_answer_and_has_more_time(world: World) -> None:
    world.guard("rollout-0", loading=True)
    assert not world.go_on(500), "it may wait for a node"
    world.answers["rollout-0"] = Beat(0, "")
    world.go_on(2)
    del world.answers["rollout-0"]
    assert not world.go_on(10 * LOADING - 1)
    assert world.go_on(2)
    assert world.lost[0].startswith("rollout-0 hangs: no sign of life for 40 s while starting and loading its model")


def test_our_own_sleep_is_nobodys_silence(world: World) -> None:
    world.guard("rollout-0")
    world.vigil.asked()
    world.now += max(SLEPT_S, PATIENCE.hung_s) + 100
    assert not world.vigil.look()
    assert not world.go_on(9)
    assert world.go_on(1)


def test_an_answer_that_waited_while_we_slept_tells_of_no_standstill(world: World) -> None:
    world.guard("rollout-0")
    world.answers["rollout-0"] = Beat(3, "generating")
    world.go_on(2)
    world.vigil.asked()
    world.now += PATIENCE.stalled_s + 1
    assert not world.vigil.look(), "it may have done a thousand steps since it said so"


def test_who_is_forgotten_may_be_silent(world: World) -> None:
    world.guard("rollout-0")
    world.guard("store", needed=True)
    world.vigil.asked()
    world.vigil.forget("store")
    world.go_on(10)
    assert len(world.lost) == 1
    world.vigil.forget()
    assert world.vigil.due() == float("inf")


def test_a_search_asks_everybody_at_once(world: World) -> None:
    world.guard("rollout-0")
    world.guard("store", needed=True)
    world.answers |= {"rollout-0": Beat(0, ""), "store": Beat(0, "")}
    world.go_on(1)
    world.answers["store"] = WorkerLost("store died")
    with pytest.raises(WorkerLost, match="store died"):
        world.vigil.search(3)


def test_without_ray_nobody_else_is_blamed(world: World) -> None:
    world.guard("rollout-0")
    world.answers["rollout-0"] = WorkerLost("rollout-0 died")
    world.fallen = "Ray's raylet died"
    with pytest.raises(ClusterLost, match="^Ray's raylet died while the run was going on"):
        world.go_on(1)
    assert world.lost == []


def test_a_large_cluster_is_asked_less_often(world: World) -> None:
    for number in range(1000):
        world.guard(f"rollout-{number}")
        world.answers[f"rollout-{number}"] = Beat(0, "")
    world.go_on(10)
    assert len(world.asked) <= 10 * 200 + 1000


def test_progress_counts_steps_and_says_what_is_worked_at() -> None:
    progress = Pulse()
    assert progress.beat() == Beat(0, "")
    with progress.working("generating"):
        progress.step()
        with progress.working("pulling weights"):
            assert progress.beat().doing == "pulling weights"
        assert progress.beat().doing == "generating"
    assert progress.beat().doing == ""
    assert progress.beat().steps >= 3


def test_who_ended_the_run_is_known_by_his_error(world: World) -> None:
    world.guard("rollout-0")
    world.guard("store", needed=True)
    with pytest.raises(WorkerLost, match="store hangs") as raised:
        world.go_on(10)
    assert world.vigil.ended_by is raised.value, "who is only the first to notice must be told from who is lost"
