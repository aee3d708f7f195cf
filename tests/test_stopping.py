import os
import signal
from contextlib import suppress

import pytest

from rlhf_dist.stopping import SIGNALS, Stopped, handlers_kept, held, stop_of, stoppable


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_signal_runs_every_finally_and_has_the_shells_exit_code(number: int, code: int, name: str) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    cleaned = []

    def run() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break the end off
            cleaned.append(True)

    with pytest.raises(Stopped, match=f"stopped by {name}") as caught, stoppable():
        run()
    assert cleaned
    assert caught.value.exit_code == code
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_handlers_outlive_a_library_that_sets_its_own() -> None:
    with stoppable():
        ours = signal.getsignal(signal.SIGTERM)
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is ours


def test_a_signal_that_is_held_takes_effect_afterwards() -> None:
    done = []

    def run() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")
        done.append("more")

    with pytest.raises(Stopped, match="stopped by SIGTERM"), stoppable():
        run()
    assert done == ["all of it"]


def test_a_library_that_swallows_what_the_handler_raised_does_not_hide_the_signal() -> None:
    """Ray's waiting calls do: the caller gets a bare KeyboardInterrupt."""
    told = []

    def run() -> None:
        with suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            told.append(str(stop_of(error)))
            raise

    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught, stoppable():
        run()
    assert caught.value.exit_code == 143
    assert told == ["stopped by SIGTERM"]
    assert stop_of(ValueError()) is None


def test_a_keyboard_interrupt_that_no_signal_brought_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stoppable():
        raise KeyboardInterrupt
    assert type(caught.value) is KeyboardInterrupt
