"""Every way in which a wait on actors ends, on real ones."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.pulse import Beat
from rlhf_dist.cluster.vigil import Patience
from rlhf_dist.cluster.watch import Watch, fetch
from rlhf_dist.errors import RewardError, RlhfDistError, WaitTimeout, WorkerDied, WorkerLost

pytestmark = pytest.mark.usefixtures("ray_session")


class Worker:
    def say(self, what: str) -> str:
        return what

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise RuntimeError("broken on purpose")

    def refuse(self) -> None:
        raise RewardError("a reward that is no number")

    def die(self) -> None:
        os._exit(1)

    def pulse(self) -> Beat:
        return Beat(0, "")

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def ask(self, other: list[Any]) -> str:
        import ray

        told: str = ray.get(other[0].say.remote("x"))
        return told


@pytest.fixture(scope="module")
def hire(ray_session: None) -> Iterator[Any]:
    import ray

    hired: list[Any] = []

    def one() -> Any:
        hired.append(pulse.watched(Worker).options(num_cpus=0, max_concurrency=16).remote())
        return hired[-1]

    yield one
    for worker in hired:
        ray.kill(worker)


@pytest.fixture(scope="module")
def steady(hire: Any) -> Any:
    """A worker that nothing is done to."""
    return hire()


def loop_of(watch: Watch, ref: Any) -> None:
    """Watch a loop as a fleet does where no loss is made good."""
    watch.then("loop-0", ref, lambda _: None, doing="running its loop")


def test_results_come_by_name_in_the_order_asked_for(steady: Any) -> None:
    calls = {name: steady.say.remote(name) for name in ("b", "a")}
    found = Watch().wait(calls, timeout_s=30, doing="talking")
    assert list(found.items()) == [("b", "b"), ("a", "a")]
    assert Watch().one("a", steady.say.remote("x"), timeout_s=30, doing="talking") == "x"


def test_a_wait_that_runs_out_names_everybody_who_did_not_answer(steady: Any) -> None:
    calls = {"late-1": steady.sleep.remote(2), "late-0": steady.sleep.remote(2), "quick": steady.say.remote("x")}
    with pytest.raises(WaitTimeout, match=r"^late-0, late-1: no answer within 0.5 s while dreaming$"):
        Watch().wait(calls, timeout_s=0.5, doing="dreaming")


def test_an_error_of_ours_arrives_as_what_it_is_with_name_and_doing(steady: Any) -> None:
    with pytest.raises(RewardError, match="^reward-0, while scoring: a reward that is no number"):
        Watch().one("reward-0", steady.refuse.remote(), timeout_s=30, doing="scoring")


def test_any_other_error_is_a_death_with_its_traceback(steady: Any) -> None:
    with pytest.raises(WorkerDied, match=r"^reward-0 raised while scoring:(.|\n)*broken on purpose") as caught:
        Watch().one("reward-0", steady.fail.remote(), timeout_s=30, doing="scoring")
    assert not isinstance(caught.value, WorkerLost), "the process is there: another would fail alike"


def test_a_process_that_is_gone_is_lost(hire: Any) -> None:
    with pytest.raises(
        WorkerLost, match=r"^reward-0 died while scoring: its process was killed, .*, process \d+ on [\d.]+$"
    ):
        Watch().one("reward-0", hire().die.remote(), timeout_s=30, doing="scoring")


@pytest.mark.parametrize(
    ("method", "error", "told"),
    [
        ("fail", WorkerDied, "loop-0 raised while running its loop"),
        ("refuse", RewardError, "loop-0, while running its loop"),
    ],
)
def test_a_loop_that_raises_ends_whatever_is_waited_for(
    method: str, error: type[RlhfDistError], told: str, steady: Any
) -> None:
    watch = Watch()
    loop_of(watch, getattr(steady, method).remote())
    with pytest.raises(error, match=told):
        watch.one("other-0", steady.sleep.remote(3), timeout_s=30, doing="dreaming")


def test_a_loop_whose_process_is_gone_ends_whatever_is_waited_for(hire: Any, steady: Any) -> None:
    watch = Watch()
    loop_of(watch, hire().die.remote())
    with pytest.raises(WorkerLost, match="loop-0 died while running its loop"):
        watch.one("other-0", steady.sleep.remote(3), timeout_s=30, doing="dreaming")


def test_who_takes_over_a_failure_keeps_the_run_going(hire: Any, steady: Any) -> None:
    watch, told = Watch(), list[RlhfDistError]()
    watch.then("rollout-0", hire().die.remote(), lambda _: None, doing="generating", failed=told.append)
    assert watch.until(lambda: bool(told), timeout_s=30)
    assert isinstance(told[0], WorkerLost)
    assert watch.one("a", steady.say.remote("x"), timeout_s=30, doing="talking") == "x"


def test_what_follows_from_a_call_happens_while_somebody_waits_and_once(steady: Any) -> None:
    watch, told = Watch(), list[str]()
    watch.then("a", steady.say.remote("first"), told.append, doing="talking")
    assert watch.until(lambda: bool(told), timeout_s=30)
    watch.one("b", steady.say.remote("x"), timeout_s=30, doing="talking")
    assert told == ["first"]


def test_a_condition_that_never_holds_is_given_up(steady: Any) -> None:
    began = time.monotonic()
    assert not Watch().until(lambda: False, timeout_s=0.3), "nothing is watched"
    watch = Watch()
    watch.then("a", steady.sleep.remote(2), lambda _: None, doing="dreaming")
    assert not watch.until(lambda: False, timeout_s=0.3), "what is watched goes on"
    assert time.monotonic() - began > 0.5


def test_who_is_forgotten_may_fail(hire: Any, steady: Any) -> None:
    watch = Watch()
    loop_of(watch, hire().die.remote())
    watch.forget()
    assert watch.one("a", steady.say.remote("x"), timeout_s=30, doing="talking") == "x"


def test_a_fetch_from_the_store_that_runs_out_says_what_was_asked(steady: Any) -> None:
    assert fetch(steady.say.remote("x"), timeout_s=30, doing="handing out weights") == "x"
    with pytest.raises(WaitTimeout, match=r"^store: no answer within 0.3 s while handing out weights$"):
        fetch(steady.sleep.remote(2), timeout_s=0.3, doing="handing out weights")


def guard(watch: Watch, name: str, actor: Any, lost: Any = None) -> None:
    watch.vigil.guard(name, lambda: pulse.ask(actor), lost=lost)


def test_a_stopped_process_is_found_by_its_silence_also_while_another_is_waited_for(hire: Any, steady: Any) -> None:
    watch, stopped = Watch(Patience(hung_s=1.5, every_s=0.1)), hire()
    stopped.stop.remote()
    guard(watch, "steady", steady)
    guard(watch, "store", stopped)
    with pytest.raises(WorkerLost, match=r"^store hangs: no sign of life for \d+ s while dreaming \(timeouts.hung\)$"):
        watch.one("other-0", steady.sleep.remote(20), timeout_s=60, doing="dreaming")


def test_an_idle_process_that_is_gone_is_found_at_once_and_who_takes_over_goes_on(hire: Any, steady: Any) -> None:
    watch, told, gone = Watch(Patience(every_s=0.1)), list[RlhfDistError](), hire()
    guard(watch, "rollout-0", gone, told.append)
    gone.die.remote()
    assert watch.until(lambda: bool(told), timeout_s=30)
    assert isinstance(told[0], WorkerLost)
    assert watch.one("a", steady.say.remote("x"), timeout_s=30, doing="talking") == "x"


def test_who_only_lost_touch_with_another_is_not_blamed_for_it(hire: Any, steady: Any) -> None:
    watch, gone = Watch(Patience(every_s=0.1)), hire()
    assert watch.one("store", gone.say.remote("x"), timeout_s=30, doing="talking") == "x"
    gone.die.remote()
    guard(watch, "reward-0", steady)
    guard(watch, "store", gone)
    with pytest.raises(WorkerLost, match=r"^store died while "):
        watch.one("reward-0", steady.ask.remote([gone]), timeout_s=30, doing="running its loop")
    guard(watch, "store", gone)
    blamed: list[RlhfDistError] = []
    loop = steady.ask.remote([gone])
    watch.then("reward-0", loop, blamed.append, doing="running its loop", failed=blamed.append)
    with pytest.raises(WorkerLost, match=r"^store died while "):
        watch.until(lambda: bool(blamed), timeout_s=30)
    assert not blamed, "the worker would be replaced, and the store go unnoticed"
    alone = Watch()
    with pytest.raises(WorkerLost, match=r"^reward-0 lost touch with another actor while running its loop"):
        alone.one("reward-0", steady.ask.remote([gone]), timeout_s=30, doing="running its loop")


def test_a_call_has_its_time_and_who_takes_over_hears_of_it(steady: Any) -> None:
    watch, told = Watch(), list[RlhfDistError]()
    watch.then("rollout-0", steady.sleep.remote(3), told.append, doing="starting", failed=told.append, within_s=0.3)
    assert watch.until(lambda: bool(told), timeout_s=30)
    assert str(told[0]) == "rollout-0: no answer within 0.3 s while starting"
    assert isinstance(told[0], WaitTimeout)
