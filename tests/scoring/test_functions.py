"""Users' functions in processes of their own: whatever they do, the scorer learns which answer they did it to."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from rlhf_dist import progress
from rlhf_dist.errors import ConfigError, RewardError, RunError
from rlhf_dist.scoring.function_host import NoNumber, number
from rlhf_dist.scoring.functions import GuardedRule

HERE = "tests.scoring.rules"


@pytest.fixture(scope="module")
def does() -> Iterator[GuardedRule]:
    with closing(GuardedRule(f"{HERE}:does", 1.0)) as rule:
        yield rule


def asked(rule: GuardedRule, *answers: str) -> list[float | str]:
    return [*rule.scores([("Hi", answer) for answer in answers])]


ENDS = {
    "exit": "raised SystemExit: 3",
    "die": "ended its process, exit code 9",
    "crash": "ended its process by SIGSEGV",
    "hang": "did not return within 1 s",
    "recur": "raised RecursionError: maximum recursion depth exceeded",
    "interrupt": "raised KeyboardInterrupt",
    "memory": "raised MemoryError",
    "leave a child": "ended its process, exit code 9",
}


@pytest.mark.parametrize("what", ENDS)
def test_whatever_a_function_does_to_its_process_is_one_answers_failure(what: str, does: GuardedRule) -> None:
    first, failed, last = asked(does, "", what, "")
    assert (first, last) == (1.0, 1.0), "the others are scored, if need be by a new process"
    assert f"{HERE}:does {ENDS[what]}" in str(failed)
    with pytest.raises(RewardError, match=rf"does {ENDS[what]}.*, on prompt 'Hi' and answer '{what}'"):
        does("Hi", what)


def test_how_a_process_ended_is_known_where_nobody_learns_it_of_a_child(does: GuardedRule) -> None:
    """As in Ray's processes, whose children also begin with this."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with closing(GuardedRule(f"{HERE}:does", 5.0)) as rule:
            assert asked(rule, "die", "") == [f"{HERE}:does ended its process, exit code 9", 1.0]
            assert asked(rule, "ask another") == [3.0]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_a_function_prints_is_no_answer_of_its(does: GuardedRule, capfd: pytest.CaptureFixture[str]) -> None:
    assert asked(does, "print", "") == [1.0, 1.0]


def test_answers_that_nobody_waited_for_are_not_taken_for_later_ones(does: GuardedRule) -> None:
    (pid,) = asked(does, "pid")
    abandoned = does.scores([("Hi", "")] * 3)
    next(abandoned)
    assert asked(does, "pid") != [1.0]
    assert asked(does, "pid") != [pid], "what was asked of it is another process's business"


def test_a_process_that_is_killed_between_two_batches_is_no_answers_failure(does: GuardedRule) -> None:
    (pid,) = asked(does, "pid")
    os.kill(int(pid), signal.SIGKILL)
    does._process.wait()
    assert asked(does, "") == [1.0]


def test_scores_are_real_numbers_and_nothing_that_looks_like_one() -> None:
    with closing(GuardedRule(f"{HERE}:says", 5.0)) as rule:
        wrong = ["text", "truth", "complex", "vector", "one in a list", "a truth of NumPy's", "too large"]
        assert all(isinstance(said, str) for said in asked(rule, *wrong))
        assert "says returned str '1.5'; expected a number" in str(asked(rule, "text"))
        assert asked(rule, "int", "float32", "int64", "no axes") == [3.0, 1.5, 3.0, 2.5]
        assert math.isnan(rule("Hi", "nothing")), "no opinion"
        for odd, told in (("not a number", "nan"), ("infinite", "-inf")):
            with pytest.raises(
                RewardError, match=f"says {told}; expected a finite number, or None, on prompt 'Hi' and answer"
            ):
                rule("Hi", odd)
    assert number(torch.tensor(2.5, requires_grad=True)) == 2.5
    with pytest.raises(NoNumber, match="returned Tensor"):
        number(torch.ones(1))


def test_after_its_end_a_function_is_not_called_and_an_end_from_elsewhere_is_no_failure_of_an_answer() -> None:
    rule = GuardedRule(f"{HERE}:does", 30.0)
    ending = threading.Timer(0.3, rule.close)
    ending.start()
    with pytest.raises(RunError, match="does was called after its end") as told:
        asked(rule, "hang")
    assert not isinstance(told.value, RewardError)
    with pytest.raises(RunError, match="was called after its end"):
        rule("Hi", "")
    ending.join()


def test_a_wait_for_a_function_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch, does: GuardedRule) -> None:
    steps: list[None] = []
    monkeypatch.setattr(progress, "STEPS", [lambda: steps.append(None)])
    monkeypatch.setattr("rlhf_dist.scoring.functions.LOOK_S", 0.2)
    asked(does, "hang")
    assert len(steps) >= 3


ORPHAN = f"""
import sys
from rlhf_dist.scoring.functions import GuardedRule
rule = GuardedRule("{HERE}:does", 100.0)
print(rule._process.pid, flush=True)
rule("Hi", sys.argv[1])
"""


@pytest.mark.parametrize("busy", ["", "hang"])
def test_the_process_ends_with_the_one_that_started_it_in_whatever_way(busy: str) -> None:
    command = [sys.executable, "-c", ORPHAN + ("" if busy else "sys.stdin.read()"), busy]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
                time.sleep(0.05)
                continue
        break
    else:
        pytest.fail(f"{pid} is still there")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.scoring.ends_at_import:f", "it ended its process, exit code 7, while it was imported"),
        (f"{HERE}:nothing", "AttributeError: module .* has no attribute 'nothing'"),
        (f"{HERE}:SAID", "TypeError: SAID is dict; expected a function"),
        ("no.such:f", "ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_imported_is_a_setting_to_mend(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward r is '{path}': {message}.*; expected package.module:function"):
        GuardedRule(path, 1.0, key="reward r")
