import math

import pyarrow as pa
import pytest

from rlhf_dist.evaluation.before_after import compare
from rlhf_dist.records import Prompt, RowKey, Sample
from rlhf_dist.store.row import rollout_batch


class Letters:
    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + token) for token in tokens)


def answers(*texts: str) -> pa.RecordBatch:
    tokens = [tuple(ord(c) - 97 for c in text) for text in texts]
    return rollout_batch([Sample(RowKey(-1, n, 0), (0,), t, (0.0,) * len(t), "stop", ()) for n, t in enumerate(tokens)])


PROMPTS = [Prompt(i, (1,), f"p{i}") for i in range(4)]


def test_win_rate_counts_strict_wins_and_ties_apart() -> None:
    verdict = compare(
        PROMPTS, answers("a", "aa", "aaa", "a"), answers("aa", "aa", "a", "aaa"), Letters(), lambda p, a: len(a)
    )
    assert (verdict.win_rate, verdict.tie_rate) == (0.5, 0.25)
    assert (verdict.gold_before, verdict.gold_after) == (7 / 4, 8 / 4)
    assert verdict.comparisons[0].after == "aa"
    assert verdict.length_bias is not None
    assert (verdict.length_bias.longer_wins.mean, verdict.length_bias.difference) == (1.0, 1 / 4)


def test_people_read_a_prompt_without_its_template_and_the_judge_is_given_it_with() -> None:
    given: list[str] = []
    prompts = [Prompt(0, (1,), "<s>user hi<e>", spoken="User: hi")]
    verdict = compare(
        prompts, answers("a"), answers("b"), Letters(), lambda prompt, _: given.append(prompt.text) or 0.0
    )
    assert verdict.comparisons[0].prompt == "User: hi"
    assert given == ["<s>user hi<e>"] * 2


def test_without_a_judge_answers_are_kept_and_nothing_is_decided() -> None:
    verdict = compare(PROMPTS, answers("a", "a", "a", "a"), answers("b", "b", "b", "b"), Letters(), None)
    assert verdict.win_rate is None
    assert len(verdict.comparisons) == 4


def test_what_the_judge_has_no_number_for_is_neither_won_nor_lost() -> None:
    def judge(prompt: Prompt, answer: str) -> float:
        return math.nan if answer == "b" else float(len(answer))

    verdict = compare(PROMPTS, answers("a", "a", "b", "a"), answers("aa", "b", "aa", "a"), Letters(), judge)
    assert (verdict.win_rate, verdict.tie_rate, verdict.gold_after) == (0.5, 0.5, 1.5)
    assert [(each.gold_before, each.gold_after) for each in verdict.comparisons[1:3]] == [(1.0, None), (None, 2.0)]
    assert verdict.problem is None, "it said what it thinks"
    nothing = compare(PROMPTS, *[answers("b", "b", "b", "b")] * 2, Letters(), judge)
    assert (nothing.win_rate, nothing.gold_before) == (None, None)


@pytest.mark.parametrize("failure", [ValueError("no such word"), SystemExit(3), OSError(), "text", None, "raise"])
def test_a_judge_that_fails_costs_its_own_scores_only_and_it_is_said(failure: object) -> None:
    def judge(prompt: Prompt, answer: str) -> object:
        if prompt.text == "p1" and isinstance(failure, BaseException):
            raise failure
        return failure if prompt.text == "p1" else len(answer)

    verdict = compare(PROMPTS, answers("a", "a", "a", "a"), answers("aa", "aa", "aa", "a"), Letters(), judge)
    assert (verdict.win_rate, verdict.tie_rate) == (2 / 3, 1 / 3)
    assert verdict.problem is not None
    assert verdict.problem.startswith("the gold judge failed on 2 of 8 answers, which have no gold score: ")
    assert "on prompt 'p1' and answer 'a'" in verdict.problem


def test_a_judge_that_always_fails_leaves_the_answers() -> None:
    def judge(prompt: Prompt, answer: str) -> float:
        raise KeyError(prompt.text)

    verdict = compare(PROMPTS, *[answers("a", "a", "a", "a")] * 2, Letters(), judge)
    assert (verdict.win_rate, verdict.gold_after, len(verdict.comparisons)) == (None, None, 4)
    assert "failed on 8 of 8 answers" in str(verdict.problem)
