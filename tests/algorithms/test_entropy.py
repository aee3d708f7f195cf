import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.algorithms.bounds import LEAST, MOST
from rlhf_dist.algorithms.entropy import EntropyCoefficient


def test_the_coefficient_moves_in_logarithms_by_the_distance_from_the_target() -> None:
    coefficient = EntropyCoefficient(0.01, target=1.5, lr=0.1)
    coefficient.update(0.5)
    assert coefficient.coefficient == pytest.approx(0.01 * math.exp(0.1)), "too little entropy: more weight"
    coefficient.update(3.5)
    assert coefficient.coefficient == pytest.approx(0.01 * math.exp(0.1 - 0.2))


@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_moves_nothing(entropy: float) -> None:
    coefficient = EntropyCoefficient(0.01, target=1.0, lr=0.1)
    coefficient.update(entropy)
    assert coefficient.coefficient == 0.01


def test_without_a_target_it_stays_also_where_no_adaptive_one_may_be() -> None:
    for start in (0.0, 0.01, 1e6):
        coefficient = EntropyCoefficient(start, target=None, lr=0.1)
        coefficient.update(0.0)
        assert coefficient.coefficient == start


@given(st.floats(LEAST, MOST), st.floats(0, 20), st.lists(st.floats(0, 20), max_size=20))
def test_it_stays_within_bounds(start: float, target: float, entropies: list[float]) -> None:
    coefficient = EntropyCoefficient(start, target=target, lr=1.0)
    for entropy in entropies:
        coefficient.update(entropy)
        assert LEAST <= coefficient.coefficient <= MOST


def test_it_finds_back_from_either_end() -> None:
    coefficient = EntropyCoefficient(0.01, target=1.0, lr=1.0)
    for entropy, end in ((20.0, LEAST), (0.0, MOST), (20.0, LEAST)):
        for _ in range(30):
            coefficient.update(entropy)
        assert coefficient.coefficient == end
