"""Learning rates of every step of small runs; what is recorded: tests/learner/test_trained_model.py."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.config import Optimizer
from rlhf_dist.learner.schedule import move_to, schedule_of

KINDS = ("constant_with_warmup", "linear", "cosine")


def rates(kind: str, *, warmup: float, total: int, lr: float = 1.0) -> list[float]:
    """What each step of a run learns at."""
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = schedule_of(adamw, Optimizer(lr=lr, warmup=warmup, schedule=kind), total_steps=total)
    found = []
    for _ in range(total):
        found.append(adamw.param_groups[0]["lr"])
        adamw.step()
        schedule.step()
    return found


@given(st.sampled_from(KINDS), st.floats(0, 1), st.integers(1, 40))
def test_every_step_learns_and_none_above_the_peak(kind: str, warmup: float, total: int) -> None:
    found = rates(kind, warmup=warmup, total=total)
    assert all(0 < rate <= 1 for rate in found)
    rising = round(warmup * total)
    assert all(a < b for a, b in pairwise(found[: rising + 1]))
    assert all(a >= b for a, b in pairwise(found[rising:]))


def test_rates_are_those_of_the_formulas() -> None:
    assert rates("constant_with_warmup", warmup=0.5, total=4) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates("linear", warmup=0.2, total=5) == pytest.approx([1 / 2, 1, 3 / 4, 2 / 4, 1 / 4])
    assert rates("cosine", warmup=0, total=2) == pytest.approx([1, 0.5])
    assert [rates(kind, warmup=0, total=1) for kind in KINDS] == [[1.0]] * 3
    assert rates("linear", warmup=1, total=3) == pytest.approx([1 / 4, 2 / 4, 3 / 4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_that_is_moved_goes_on_as_if_it_had_come_there(kind: str) -> None:
    whole = rates(kind, warmup=0.3, total=10, lr=0.5)
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = schedule_of(adamw, Optimizer(lr=0.5, warmup=0.3, schedule=kind), total_steps=10)
    move_to(schedule, 6)
    found = []
    for _ in range(4):
        found.append(adamw.param_groups[0]["lr"])
        assert schedule.get_last_lr() == found[-1:]
        adamw.step()
        schedule.step()
    assert found == pytest.approx(whole[6:])
