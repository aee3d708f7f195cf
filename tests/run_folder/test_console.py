import io
import re
import time

import pytest
from rich.console import Console as RichConsole

from rlhf_dist import progress
from rlhf_dist.run_folder.console import COLUMNS, Console, Work

METRICS = dict.fromkeys((key for key, _ in COLUMNS.values()), 0.5)


def piped(quiet_s: float = 0.05) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(RichConsole(file=output, width=200), quiet_s=quiet_s), output


def wait_for(output: io.StringIO, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not re.search(pattern, output.getvalue()):
        assert time.monotonic() < deadline, output.getvalue()
        time.sleep(0.01)


def test_on_a_pipe_a_silence_is_broken_by_what_goes_on_and_how_much_is_left() -> None:
    console, output = piped()
    with console:
        console.doing("sft: starting")
        wait_for(output, r"sft: starting: \d+ s so far\n")
        with console.progress("SFT", 4):
            console.advance("loss 0.5")
            wait_for(output, r"SFT: 1 of 4, loss 0\.5, \d+ s so far, about \d+ s left\n")
    said = output.getvalue()
    time.sleep(0.2)
    assert output.getvalue() == said, "afterwards it is silent"


def test_nobody_is_interrupted_who_speaks_often_enough() -> None:
    console, output = piped(quiet_s=1000)
    with console, console.progress("PPO", 2):
        console.iteration(0, METRICS)
        console.iteration(1, METRICS)
    lines = output.getvalue().splitlines()
    assert lines[0] == "PPO: 2 steps"
    assert [line.partition(":")[0] for line in lines[1:]] == ["iteration 1", "iteration 2"]


def test_loops_below_are_heard_while_the_console_listens() -> None:
    console, output = piped()
    with console:
        for number in progress.counted(range(1000), "tokenising x.jsonl"):
            if number == 500:
                wait_for(output, r"tokenising x\.jsonl: 448 of 1000, .*left\n")
    assert progress.LISTENERS == []
    assert [*progress.counted([1, 2], "x")] == [1, 2]


@pytest.mark.parametrize(
    ("first", "done", "left"), [(0, 0, None), (0, 5, "about 1 min 0 s left"), (15, 16, "about 4 min 0 s left")]
)
def test_what_is_left_is_told_by_the_pace_of_this_process_alone(first: int, done: int, left: str | None) -> None:
    told = Work("PPO", since=0.0, first=first, done=done, total=20).told(now=60.0 if first else 20.0)
    assert told.startswith(f"PPO: {done} of 20, ")
    assert (left in told) if left else ("left" not in told)


def test_a_resumed_run_goes_on_where_it_was() -> None:
    console, output = piped(quiet_s=1000)
    with console.progress("PPO", 10, done=6):
        assert console._work.told(time.monotonic()).startswith("PPO: 6 of 10")
    assert output.getvalue() == "PPO: 10 steps, going on after 6\n"


def test_in_a_terminal_one_line_lives_and_the_table_stays() -> None:
    output = io.StringIO()
    console = Console(RichConsole(file=output, width=200, force_terminal=True))
    with console, console.progress("PPO", 1):
        console.iteration(0, METRICS)
        wait_for(output, "PPO: 1 of 1")
    assert "iteration" in output.getvalue().rsplit("samples/s", 1)[0]
