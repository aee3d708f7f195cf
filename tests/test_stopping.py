import os
import signal

import pytest

from rlhf_dist.stopping import SIGNALS, Stopped, handlers_kept, held, stoppable


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
