import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.algorithms.answers import NO_SPREAD
from rlhf_dist.algorithms.filters import has_signal, overlong_ramp


def test_a_prompt_has_signal_where_its_answers_differ() -> None:
    scores = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.5 + 1e-7, 3.0])
    groups = torch.tensor([0, 1, 0, 1, 2, 2, 3])
    assert has_signal(scores, groups).tolist() == [False, False, False, False]
    assert has_signal(scores, torch.tensor([0, 0, 1, 1, 2, 2, 3])).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("spread", "expected"), [(NO_SPREAD, False), (1.01 * NO_SPREAD, True)])
def test_a_millionth_is_the_smallest_difference(spread: float, expected: bool) -> None:
    scores = torch.tensor([0.0, spread], dtype=torch.float64)
    assert has_signal(scores, torch.tensor([0, 0])).tolist() == [expected]


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.0), (80, 0.0), (81, -0.1), (90, -1.0), (95, -1.5), (100, -2.0), (130, -2.0)]
)
def test_the_ramp_falls_over_the_last_part_of_the_length(length: int, expected: float) -> None:
    assert overlong_ramp(length, longest=100, share=0.2, penalty=2.0) == pytest.approx(expected)


def test_without_a_share_there_is_no_ramp() -> None:
    assert overlong_ramp(100, longest=100, share=0.0, penalty=2.0) == 0.0


def test_dapos_ramp_is_its_papers() -> None:
    """Of 20,480 tokens, the last 4,096."""
    assert overlong_ramp(18_432, longest=20_480, share=0.2, penalty=1.0) == pytest.approx(-0.5)


@given(st.integers(0, 200), st.floats(0.01, 0.99), st.floats(0.1, 5))
def test_the_ramp_is_between_nothing_and_the_penalty_and_never_rises(length: int, share: float, penalty: float) -> None:
    here, next_to_it = (overlong_ramp(n, longest=100, share=share, penalty=penalty) for n in (length, length + 1))
    assert -penalty <= next_to_it <= here <= 0
