"""A fleet's decisions, on a watch and actors that do what the test says. Real actors: tests/integration."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_dist.cluster.dealing import deal, everyone
from rlhf_dist.cluster.fleet import Fleet, FleetSize, Service, WorkerKind
from rlhf_dist.errors import ModelError, RlhfDistError, WaitTimeout, WeightError, WorkerDied, WorkerLost
from rlhf_dist.rollout.elasticity import balance


class Handle:
    """An actor, or a method of one: `remote` gives a reference that names the call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> str:
            self.calls.append((method, arguments))
            return f"{self.name}.{method}"

        return type("Method", (), {"remote": staticmethod(remote)})


class Vigil:
    """Lets the test say who is silent."""

    def __init__(self) -> None:
        self.guarded: dict[str, Callable[[RlhfDistError], None]] = {}
        self.loading: set[str] = set()
        self.ended_by: RlhfDistError | None = None

    def guard(self, name: str, ask: Any, *, lost: Callable[[RlhfDistError], None], loading: bool = False) -> None:
        self.guarded[name] = lost
        (self.loading.add if loading else self.loading.discard)(name)


class Watch:
    """Lets the test end calls in its own order."""

    def __init__(self) -> None:
        self.vigil = Vigil()
        self.awaited: dict[str, tuple[Callable[[Any], None], Callable[[RlhfDistError], None]]] = {}
        self.granted: dict[str, float] = {}
        self.told: list[str] = []
        self.say = self.told.append
        self.deaths: set[str] = set()
        """Calls during which their worker dies."""
        self.others_death: WorkerLost | None = None

    def then(
        self, worker: str, ref: str, done: Any, *, doing: str, failed: Any, within_s: float = float("inf")
    ) -> None:
        self.awaited[ref] = (done, failed)
        self.granted[ref] = within_s

    def forget(self, worker: str) -> None:
        self.vigil.guarded.pop(worker, None)
        self.forget_calls(worker)

    def forget_calls(self, worker: str) -> None:
        for ref in [each for each in self.awaited if each.startswith(f"{worker}.")]:
            del self.awaited[ref]

    def one(self, worker: str, ref: str, *, timeout_s: float, doing: str) -> Any:
        assert timeout_s > 0, "a share that is asked again has its time anew"
        if ref in self.deaths:
            self.deaths.discard(ref)
            for loop in [each for each in self.awaited if each.startswith(f"{worker}.")]:
                self.lose(loop)
            raise WorkerLost(f"{worker} died while {doing}")
        if self.others_death is not None:
            raise self.others_death
        return f"{ref} answered"

    def until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        return condition()

    def end(self, ref: str) -> None:
        self.awaited.pop(ref)[0](None)

    def lose(self, ref: str, error: RlhfDistError | None = None) -> None:
        self.awaited.pop(ref)[1](error or WorkerLost(f"{ref} died"))


class World:
    def __init__(
        self, fewest: int, most: int, *, room: int = 0, max_restarts: int = 1, loops: bool = True, setting: str = ""
    ) -> None:
        self.watch, self.lost = Watch(), list[str]()
        self.room, self.spawned = room, dict[str, int]()
        kind = WorkerKind("rollout", self.spawn, room=lambda: self.room)
        self.fleet = Fleet(kind, FleetSize(fewest, most, max_restarts, setting), self.watch)
        if loops:
            self.serve()

    def serve(self, store: str = "store") -> None:
        self.fleet.serve(Service(run=lambda worker: worker.run.remote(store), lost=self.lost.append))

    def balance(self, *, waited_s: float, step_s: float) -> None:
        balance(self.fleet, waited_s=waited_s, step_s=step_s)

    def spawn(self, name: str, slot: int) -> Handle:
        self.spawned[name] = slot
        return Handle(name)

    def start(self, count: int) -> None:
        self.fleet.open(timeout_s=60)
        for number in range(count):
            self.watch.end(f"rollout-{number}.start")


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import ray

    names: list[str] = []
    monkeypatch.setattr(ray, "kill", lambda handle: names.append(handle.name))
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
    return names


def test_a_fixed_fleet_starts_its_number_and_no_more() -> None:
    world = World(2, 2, room=9)
    world.start(2)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-1": "ready"}


def test_an_elastic_fleet_keeps_one_worker_waiting_for_room_and_fills_what_there_is() -> None:
    world = World(1, 8)
    world.start(1)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-1": "starting"}
    world.room = 3
    world.watch.end("rollout-1.start")
    assert list(world.fleet.states().values()) == ["ready"] * 2 + ["starting"] * 4


def test_a_lost_worker_is_released_and_replaced_under_another_name_in_its_slot() -> None:
    world = World(2, 2)
    world.start(2)
    world.watch.lose("rollout-0.run")
    assert world.lost == ["rollout-0"]
    assert world.fleet.states() == {"rollout-1": "ready", "rollout-2": "starting"}
    assert world.spawned["rollout-2"] == 0
    assert world.fleet.restarts == 1
    assert world.watch.told == ["rollout-0.run died; another takes its place"]


def test_a_worker_that_gives_no_sign_of_life_is_killed_released_and_replaced(killed: list[str]) -> None:
    world = World(2, 2)
    world.start(2)
    assert not world.watch.vigil.loading
    world.watch.vigil.guarded["rollout-1"](WorkerLost("rollout-1 hangs: no sign of life for 30 s"))
    assert (killed, world.lost) == (["rollout-1"], ["rollout-1"])
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-2": "starting"}
    assert world.watch.vigil.guarded.keys() == {"rollout-0", "rollout-2"}
    assert world.watch.vigil.loading == {"rollout-2"}
    assert "rollout-1.run" not in world.watch.awaited, "its end is no second loss"


def test_a_worker_that_is_needed_has_its_time_to_start_and_one_more_may_wait_for_room() -> None:
    world = World(1, 3)
    world.start(1)
    world.room = 1
    world.watch.lose("rollout-0.run")
    assert world.watch.granted["rollout-0.start"] == world.watch.granted["rollout-2.start"] == 60
    world.watch.end("rollout-2.start")
    world.balance(waited_s=5, step_s=10)
    assert world.watch.granted["rollout-3.start"] == float("inf")


def test_workers_that_are_kept_serve_the_next_store_and_those_that_are_missing_are_asked_for() -> None:
    world = World(2, 2)
    world.start(2)
    world.fleet.serve(None)
    assert not [ref for ref in world.watch.awaited if ref.endswith(".run")], "the end of the old store is no loss"
    world.watch.vigil.guarded["rollout-0"](WorkerLost("rollout-0 died"))
    assert world.lost == [], "there is no store to hand anything back to"
    world.serve("another")
    world.fleet.open(timeout_s=60)
    assert world.fleet.states() == {"rollout-1": "ready", "rollout-2": "starting"}
    world.watch.end("rollout-2.start")
    assert [worker.calls[-1] for worker in world.fleet.ready.values()] == [("run", ("another",))] * 2


def test_who_is_starting_elsewhere_than_it_was_told_is_stopped_and_asked_for_anew(killed: list[str]) -> None:
    world = World(2, 2)
    world.start(1)
    world.fleet.start_over()
    assert (killed, world.fleet.states()) == (["rollout-1"], {"rollout-0": "ready"})
    world.fleet.open(timeout_s=60)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-2": "starting"}
    assert world.spawned["rollout-2"] == world.spawned["rollout-1"], "in its slot"


def test_at_the_end_everybody_may_end_in_order_before_he_is_killed(killed: list[str]) -> None:
    world = World(1, 3)
    world.start(1)
    worker = world.fleet.ready["rollout-0"]
    world.fleet.close()
    assert worker.calls[-1] == ("close", ())
    assert killed == ["rollout-0", "rollout-1"]
    assert not world.watch.vigil.guarded
    assert not world.fleet.states()


def test_losses_are_counted_anew_after_each_iteration() -> None:
    world = World(1, 1, max_restarts=1)
    world.start(1)
    for number in range(3):
        world.watch.lose(f"rollout-{number}.run")
        world.watch.end(f"rollout-{number + 1}.start")
        world.fleet.forgive()
    assert world.fleet.restarts == 3


def test_more_losses_than_allowed_in_one_iteration_end_the_run_but_not_over_several() -> None:
    world = World(1, 1, max_restarts=1, setting="rollout.max_restarts")
    world.start(1)
    world.watch.lose("rollout-0.run")
    world.balance(waited_s=5, step_s=10)
    world.watch.lose("rollout-1.start")
    with pytest.raises(
        WorkerDied, match=r"2 rollout workers were lost in this iteration; expected at most rollout.max_restarts = 1"
    ):
        world.watch.lose("rollout-2.start")


def test_a_worker_is_let_go_when_the_learner_hardly_waits_and_stopped_when_it_has_finished(killed: list[str]) -> None:
    world = World(1, 2)
    world.start(2)
    # It waits 0.4 of 10 s with two workers, and would wait about 0.8 of 10.4 s with one.
    world.balance(waited_s=0.4, step_s=10)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-1": "leaving"}
    assert killed == []
    world.watch.end("rollout-1.run")
    assert killed == [], "it ends its engine first"
    world.watch.end("rollout-1.close")
    assert killed == ["rollout-1"]
    world.balance(waited_s=0.4, step_s=10)
    assert world.fleet.states() == {"rollout-0": "ready"}
    # Alone it makes the learner wait: another is wanted again.
    world.balance(waited_s=5, step_s=10)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-2": "starting"}


def test_a_worker_stays_if_the_learner_would_wait_too_long_without_it() -> None:
    world = World(1, 2)
    world.start(2)
    # It waits 0.8 of 10 s with two workers, and would wait 1.6 of 10.8 s with one: more than a tenth.
    world.balance(waited_s=0.8, step_s=10)
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-1": "ready"}


def test_a_balanced_fleet_stays_as_it_is() -> None:
    world = World(1, 3)
    world.start(2)
    world.watch.end("rollout-2.start")
    world.balance(waited_s=2, step_s=10)
    assert list(world.fleet.states().values()) == ["ready"] * 3


def test_a_start_that_takes_too_long_names_who_is_missing() -> None:
    world = World(2, 2)
    world.start(1)
    with pytest.raises(
        WaitTimeout, match=r"rollout-1: no answer within 7 s .*; 1 rollout workers are ready, expected 2"
    ):
        world.fleet.wait_for_fewest(timeout_s=7)


def test_a_spare_worker_that_cannot_start_is_tried_again_after_the_iteration_and_ends_nothing() -> None:
    world = World(1, 3, max_restarts=0)
    world.start(1)
    for number in range(1, 4):
        world.watch.lose(f"rollout-{number}.start", ModelError("/models/sft: no such folder"))
        assert world.fleet.states() == {"rollout-0": "ready"}
        world.balance(waited_s=5, step_s=10)
    assert world.fleet.restarts == 0


def test_an_error_of_a_worker_that_is_needed_ends_the_run_as_what_it_is() -> None:
    world = World(1, 1)
    world.fleet.open(timeout_s=60)
    with pytest.raises(ModelError):
        world.watch.lose("rollout-0.start", ModelError("no such folder"))
    serving = World(1, 3)
    serving.start(1)
    with pytest.raises(WeightError):
        serving.watch.lose("rollout-0.run", WeightError("checksum"))


def test_where_no_loss_is_made_good_the_first_one_ends_the_run_with_its_own_words() -> None:
    world = World(2, 2, max_restarts=0)
    world.start(2)
    with pytest.raises(WorkerDied, match=r"^rollout-1.run died$"):
        world.watch.lose("rollout-1.run")


def test_a_loop_that_ends_although_nobody_let_its_worker_go_ends_the_run() -> None:
    world = World(1, 1)
    world.start(1)
    with pytest.raises(WorkerDied, match="rollout-0 ended its loop while the run was going on"):
        world.watch.end("rollout-0.run")


def ask(worker: Any, share: Any) -> Any:
    return worker.generate.remote(*share)


def test_work_is_dealt_out_to_every_worker() -> None:
    world = World(2, 2, loops=False)
    world.start(2)
    found = deal(world.fleet, "abcde", ask, timeout_s=1, doing="answering")
    assert [(list(numbers), told) for numbers, told in found] == [
        ([0, 2, 4], "rollout-0.generate answered"),
        ([1, 3], "rollout-1.generate answered"),
    ]
    assert world.fleet.ready["rollout-1"].calls[-1] == ("generate", ("b", "d"))


def test_no_more_workers_are_asked_than_there_is_work() -> None:
    world = World(2, 2, loops=False)
    world.start(2)
    assert len(deal(world.fleet, "a", ask, timeout_s=1, doing="answering")) == 1
    assert deal(world.fleet, "", ask, timeout_s=1, doing="answering") == []


@pytest.mark.parametrize("loops", [True, False])
def test_the_share_of_a_worker_that_dies_is_asked_of_another(loops: bool) -> None:
    world = World(2, 2, loops=loops)
    world.start(2)
    world.watch.deaths = {"rollout-0.generate"}
    found = deal(world.fleet, "abcd", ask, timeout_s=1, doing="answering")
    assert [(list(numbers), told) for numbers, told in found] == [
        ([1, 3], "rollout-1.generate answered"),
        ([0, 2], "rollout-1.generate answered"),
    ]
    assert world.fleet.states() == {"rollout-1": "ready", "rollout-2": "starting"}, "and it is replaced"
    assert (world.lost, world.fleet.restarts) == (["rollout-0"] if loops else [], 1)
    assert [call for call in world.fleet.ready["rollout-1"].calls if call[0] == "generate"] == [
        ("generate", ("b", "d")),
        ("generate", ("a", "c")),
    ]


def test_work_of_the_last_worker_waits_for_its_replacement_and_says_so_when_none_comes() -> None:
    world = World(1, 1)
    world.start(1)
    world.watch.deaths = {"rollout-0.generate"}
    with pytest.raises(WaitTimeout, match="rollout-0 was lost while answering, and no other rollout worker is ready"):
        deal(world.fleet, "ab", ask, timeout_s=3, doing="answering")
    with pytest.raises(WaitTimeout, match="no rollout worker is ready after 3 s, for answering"):
        deal(world.fleet, "ab", ask, timeout_s=3, doing="answering")


def test_the_loss_of_somebody_else_is_not_a_workers() -> None:
    world = World(1, 1)
    world.start(1)
    world.watch.others_death = world.watch.vigil.ended_by = WorkerLost("store died while answering")
    with pytest.raises(WorkerLost, match="store died"):
        deal(world.fleet, "ab", ask, timeout_s=3, doing="answering")
    with pytest.raises(WorkerLost, match="store died"):
        everyone(world.fleet, lambda worker: worker.sleep.remote(), timeout_s=3, doing="going to sleep")
    assert world.fleet.states() == {"rollout-0": "ready"}


def test_everybody_is_asked_the_same_and_who_is_lost_meanwhile_is_left_out() -> None:
    world = World(3, 3)
    world.start(3)
    world.watch.deaths = {"rollout-1.sleep"}
    found = everyone(world.fleet, lambda worker: worker.sleep.remote(), timeout_s=1, doing="going to sleep")
    assert found == {"rollout-0": "rollout-0.sleep answered", "rollout-2": "rollout-2.sleep answered"}
    assert world.fleet.states() == {"rollout-0": "ready", "rollout-2": "ready", "rollout-3": "starting"}


def test_who_is_lost_while_the_fleet_pauses_is_replaced_when_it_goes_on() -> None:
    world = World(2, 2)
    world.start(2)
    world.fleet.pause()
    world.watch.lose("rollout-0.run")
    world.fleet.forgive()
    assert world.fleet.states() == {"rollout-1": "ready"}, "others have the devices"
    world.fleet.go_on()
    assert world.fleet.states() == {"rollout-1": "ready", "rollout-2": "starting"}
    world.fleet.pause()
    world.watch.lose("rollout-1.run")
    world.fleet.open(timeout_s=60)
    assert len(world.fleet.starting) == 2, "a run that is wired anew has the devices"
