"""Real child processes that sleep, die and raise."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from rlhf_dist.cluster.children import Children
from rlhf_dist.errors import WorkerLost

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 30


@pytest.fixture
def children() -> Iterator[Children]:
    watched = Children()
    yield watched
    watched.end()


def started(number: int) -> list[multiprocessing.process.BaseProcess]:
    processes = [SPAWN.Process(target=time.sleep, args=(600,)) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    """The watching thread waits for the process as well, and whoever comes second knows a moment later."""
    deadline = time.monotonic() + WAIT_S
    while process.exitcode is None and time.monotonic() < deadline:
        process.join(0.1)
    return process.exitcode


def raise_later() -> None:
    time.sleep(1)
    raise ValueError


def known(children: Children, number: int) -> None:
    """Wait until they are watched."""
    deadline = time.monotonic() + WAIT_S
    while len(children._living) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_death_of_one_is_told_and_takes_the_others_along(children: Children) -> None:
    first, second = started(2)
    known(children, 2)
    children.are_complete()
    children.check()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match=f"pid {first.pid}.*died, exit code -9"):
        children.check(news_s=WAIT_S)
    assert exit_code(second) == -signal.SIGKILL
    with pytest.raises(WorkerLost):
        children.check()


def test_one_that_stays_stopped_counts_as_dead_and_takes_the_others_along(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_dist.cluster.children.STOPPED_S", 0.5)
    first, second = started(2)
    known(children, 2)
    children.are_complete()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost, match=rf"\(pid {first.pid}\) is stopped"):
        children.check(news_s=WAIT_S)
    assert exit_code(first) == exit_code(second) == -signal.SIGKILL


def test_a_stopped_one_is_killed_when_it_is_given_up(children: Children) -> None:
    (process,) = started(1)
    known(children, 1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    children.give_up("no answer")
    assert exit_code(process) == -signal.SIGKILL
    with pytest.raises(WorkerLost, match="no answer"):
        children.check()


def test_one_that_raises_while_they_start_is_no_loss_but_the_others_end(children: Children) -> None:
    (sleeper,) = started(1)
    raising = SPAWN.Process(target=raise_later)
    raising.start()
    known(children, 2)
    assert exit_code(sleeper) == -signal.SIGKILL
    children.check(news_s=0.1)


def test_after_the_end_nobody_is_left_and_that_is_no_loss() -> None:
    children = Children()
    mine = started(1)[0]
    known(children, 1)
    children.end()
    assert not mine.is_alive()
    children.check()


def test_a_death_is_known_where_the_kernel_reaps(children: Children) -> None:
    """As in Ray's actors."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        (process,) = started(1)
        known(children, 1)
        process.kill()
        with pytest.raises(WorkerLost, match=f"pid {process.pid}\\) died$"):
            children.check(news_s=WAIT_S)
        assert not process.is_alive()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_those_that_were_there_before_are_left_alone() -> None:
    (before,) = started(1)
    children = Children()
    children.end()
    assert before.is_alive()
    before.kill()
    before.join(WAIT_S)
