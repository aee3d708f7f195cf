"""Exact texts, patterns, and blocks of code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.verifiers import exact_match, matches, texts
from rlhf_dist.verifiers.texts import block_of


@given(st.text(), st.sampled_from([" ", "\n", "\t ", ""]))
def test_white_space_around_and_the_form_of_letters_are_no_difference(text: str, space: str) -> None:
    assert exact_match("", f"{space}{text}{space}", text) == 1.0
    assert exact_match("", f"{text} more", text) == 0.0


def test_case_counts_unless_told_otherwise_and_one_of_several_targets_is_enough() -> None:
    assert exact_match("", "yes", "Yes") == 0.0
    assert exact_match("", "yes", "Yes", ignore_case=True) == 1.0
    assert exact_match("", " new  york\n", ["NYC", "new york"]) == 1.0
    assert exact_match("", "cafe\u0301", "caf\u00e9") == 1.0
    assert exact_match("", "7", 7) == 1.0
    assert exact_match("", "7", None) is None


def test_a_pattern_matches_anywhere_unless_bound() -> None:
    assert matches("", "it is 42.", r"\d+") == 1.0
    assert matches("", "it is 42.", r"^\d+$") == 0.0
    assert matches("", "x", None) is None
    with pytest.raises(ValueError, match="is none"):
        matches("", "x", "(")


def test_a_pattern_that_tries_ways_without_number_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MATCH_S", 0.05)
    with pytest.raises(TimeoutError):
        matches("", "a" * 40 + "b", "(a|aa)+$")


def test_in_its_own_process_such_a_pattern_costs_one_answer_even_without_a_limit_of_its_own() -> None:
    rule = GuardedRule("tests.scoring.rules:matches_for_ever", 0.5)
    try:
        columns = '{"pattern": "(a|aa)+$"}'
        stuck, fine = rule.scores([("", "a" * 40 + "b", columns, ""), ("", "aa", columns, "")])
    finally:
        rule.close()
    assert "did not return within 0.5 s" in str(stuck)
    assert fine == 1.0


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nand\n```py\nx = 2\n```", "x = 2\n"),
        ("```\nx = 3\n```", "x = 3\n"),
        ("```json\n{}\n```\n```Python title=a\nx = 4\n```", "x = 4\n"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
    ],
)
def test_the_last_block_of_the_language_is_the_code(answer: str, code: str) -> None:
    assert block_of(answer, "python", "py") == code
