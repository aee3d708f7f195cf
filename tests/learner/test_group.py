"""What a group plans with; its ranks: tests/integration/test_learner_parity.py."""

import math
from typing import Any

import pytest

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Learner, Timeouts
from rlhf_dist.errors import NumbersError
from rlhf_dist.learner.finite import found_in
from rlhf_dist.learner.group import MOST_LEFT_OUT, LearnerGroup
from rlhf_dist.learner.policy_update import Updated
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.records import RowKey

KEYS = [RowKey(4, prompt, 1) for prompt in range(9)]
VAGUE = found_in(7, "the norm of the critic's gradient is not finite", KEYS, vague=True)


def judged(group: LearnerGroup, *found: Any, facts: dict[str, float] | None = None, **options: Any) -> dict[str, float]:
    results = {f"learner-{rank}": Updated(facts or {"loss": 1.0}, list(each)) for rank, each in enumerate(found)}
    return group._judged(results, str, **{"steps": 1, "may_skip": True, **options})


def a_group(then: str) -> LearnerGroup:
    return LearnerGroup([], Learner(on_bad_numbers=then), watch=Watch(), timeouts=Timeouts())


def test_the_error_names_what_was_found_on_any_rank_and_the_first_samples_of_all() -> None:
    found = [found_in(7, "scores are not finite", KEYS[:2])], [VAGUE, found_in(7, "scores are not finite", KEYS[2:])]
    expected = (
        "^scores are not finite in optimiser step 7, with answer 1 to prompt 0 in iteration 4, answer 1 to prompt 1 in "
        "iteration 4, answer 1 to prompt 2 in iteration 4 and 6 more. No step was taken on it"
    )
    with pytest.raises(NumbersError, match=expected):
        judged(a_group("stop"), *found)
    with pytest.raises(NumbersError, match="^the norm of the critic's gradient is not finite in optimiser step 7"):
        judged(a_group("stop"), [VAGUE], [VAGUE])


def test_steps_are_skipped_where_the_settings_say_so_but_not_too_many_in_a_row() -> None:
    group = a_group("skip")
    for _ in range(2):
        for _ in range(MOST_LEFT_OUT - 1):
            assert judged(group, [], [VAGUE]) == {"loss": 1.0}
        judged(group, [], [])
    for _ in range(MOST_LEFT_OUT - 1):
        judged(group, [VAGUE], [VAGUE])
    assert judged(group, [VAGUE], [], steps=2), "one of an update's two was taken"
    for _ in range(MOST_LEFT_OUT - 1):
        judged(group, [VAGUE])
    with pytest.raises(NumbersError, match=f"makes {MOST_LEFT_OUT} optimiser steps in a row that were left out"):
        judged(group, [VAGUE])
    with pytest.raises(NumbersError):
        judged(a_group("skip"), [VAGUE], may_skip=False)


def test_no_metric_that_is_not_finite_leaves_the_learner() -> None:
    with pytest.raises(NumbersError, match="margin is nan, norm is inf; expected numbers"):
        judged(a_group("skip"), [], facts={"loss": 1.0, "margin": math.nan, "norm": math.inf})


def test_examples_are_named_by_file_and_line_where_they_are_known() -> None:
    batch = SupervisedBatch(None, [[4, 5], [8]], [9, 9], 2.0, where=["a.jsonl:3", "b.jsonl:1"])
    assert [batch.name_of(number) for number in (5, 8)] == ["example 5 (a.jsonl:3)", "example 8 (b.jsonl:1)"]
    assert SupervisedBatch(None, [[4]], [9], 1.0).name_of(4) == "example 4"
