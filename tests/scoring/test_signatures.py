"""What functions that score ask for, and how they are called: ours, and those that were written for TRL."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from rlhf_dist.errors import ConfigError
from rlhf_dist.records import Prompt
from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.scoring.signatures import Asks, asks_of
from rlhf_dist.scoring.told import ToldOf, told_of
from tests.scoring import rules

HERE = "tests.scoring.rules"


@contextmanager
def guarded(name: str) -> Iterator[GuardedRule]:
    with closing(GuardedRule(f"{HERE}:{name}", 10.0)) as rule:
        yield rule


def row(**columns: Any) -> tuple[str, str]:
    return json.dumps(columns), ""


def chat(*texts: str, **columns: Any) -> tuple[str, str]:
    return json.dumps(columns), json.dumps({"prompt_messages": [{"role": "user", "content": text} for text in texts]})


@pytest.mark.parametrize(
    ("function", "asks"),
    [
        (rules.length_of, Asks(False, ("prompt", "answer"))),
        (rules.with_columns, Asks(False, ("prompt", "answer"), ("solution",), ("weight",), True)),
        (rules.trl_matches, Asks(True, ("completions",), ("ground_truth",), (), True)),
        (rules.trl_later, Asks(True, ("prompts", "completions"))),
        (lambda question, said, *, level: 0.0, Asks(False, ("question", "said"), ("level",))),
        (lambda *texts: 0.0, Asks()),
        (max, Asks()),
    ],
)
def test_parameters_say_what_a_function_asks_for(function: Any, asks: Asks) -> None:
    assert asks_of(function) == asks


@pytest.mark.parametrize("function", [lambda: 0.0, lambda prompt: 0.0, lambda a, b, c, /: 0.0])
def test_a_function_that_takes_no_prompt_and_answer_is_none(function: Any) -> None:
    with pytest.raises(TypeError, match=r"expected \(prompt, answer\), or TRL's \(prompts, completions, ...\)"):
        asks_of(function)


def test_a_function_of_another_form_is_a_setting_to_mend() -> None:
    with pytest.raises(ConfigError, match=r"reward r is .*TypeError: .*expected \(prompt, answer\)"):
        GuardedRule(f"{HERE}:positions", 1.0, key="reward r")


def test_a_function_is_given_columns_by_name_and_all_if_it_takes_all() -> None:
    with guarded("with_columns") as rule:
        said = [
            *rule.scores(
                [
                    ("p", "4", *row(solution="4")),
                    ("p", "4", *row(solution="5", a=[1], b={"c": None}, answer="4", weight=None)),
                    ("p", "4", *row(solution="4", weight=0.5)),
                    ("p", "4"),
                ]
            )
        ]
    assert said == [2.0, 0.25, 1.0, 0.0], "a column `answer` is not the answer, and null is the default"


def test_none_says_that_a_function_has_no_score_for_such_an_answer() -> None:
    with guarded("close_to") as rule:
        assert [*rule.scores([("", "", *row(level=0)), ("", "", *row(level=3)), ("", "")])] == [None, 3.0, 7.0]
        assert str(rule("", "")) == "7.0"


def test_functions_from_trls_documentation_work_as_they_stand() -> None:
    with guarded("trl_matches") as rule:
        asked = [("q", r"it is \boxed{4}", *row(ground_truth="4")), ("q", "it is 4", *row(ground_truth="4", level=3))]
        assert [*rule.scores(asked)] == [1.0, 0.0]
    with guarded("trl_format") as rule:
        said = ["<think>so</think><answer>4</answer>", "4"]
        assert [*rule.scores([("rendered", each, *chat("What is 2+2?")) for each in said])] == [1.0, 0.0]
    with guarded("trl_later") as rule:
        assert [*rule.scores([("ab", "c"), ("", "d")])] == [3.0, 1.0]
        assert rule("ab", "c") == 3.0


def test_what_makes_a_call_fail_is_one_answers_failure_and_the_others_are_scored() -> None:
    with guarded("trl_math") as rule:
        texts = ["abc", "raise", "ab", "crash", "a"]
        said = [*rule.scores([("", text, *row(task="math" if text != "ab" else "code")) for text in texts])]
        assert [said[0], said[2], said[4]] == [3.0, None, 1.0]
        assert "trl_math raised ValueError: no luck" in str(said[1])
        assert "trl_math ended its process, exit code 9" in str(said[3])
    with guarded("trl_short") as rule:
        assert [*rule.scores([("", "a"), ("", "b")])] == [1.0, 1.0], "each by itself"


def test_rows_are_told_by_the_prompts_own_numbers() -> None:
    prompts = [Prompt(0, (1,), "a", columns='{"x": 1}'), Prompt(7, (1,), "b", "s"), Prompt(9, (1,), "c")]
    told = ToldOf(told_of(prompts))
    assert told.of([7, 0, 8, 9, 99]) == [("", "s"), ('{"x": 1}', ""), ("", ""), ("", ""), ("", "")]
