import math

import pyarrow as pa

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


def test_without_a_judge_answers_are_kept_and_nothing_is_decided() -> None:
    verdict = compare(PROMPTS, answers("a", "a", "a", "a"), answers("b", "b", "b", "b"), Letters(), None)
    assert verdict.win_rate is None
    assert len(verdict.comparisons) == 4


def test_what_the_judge_has_no_number_for_is_neither_won_nor_lost() -> None:
    def judge(prompt: str, answer: str) -> float:
        return math.nan if answer == "b" else float(len(answer))

    verdict = compare(PROMPTS, answers("a", "a", "b", "a"), answers("aa", "b", "aa", "a"), Letters(), judge)
    assert (verdict.win_rate, verdict.tie_rate, verdict.gold_after) == (0.5, 0.5, 1.5)
    assert [(each.gold_before, each.gold_after) for each in verdict.comparisons[1:3]] == [(1.0, None), (None, 2.0)]
    nothing = compare(PROMPTS, *[answers("b", "b", "b", "b")] * 2, Letters(), judge)
    assert (nothing.win_rate, nothing.gold_before) == (None, None)
