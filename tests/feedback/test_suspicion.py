"""Who is suspected, why, and how rarely somebody honest is."""

import numpy as np
import pytest

from rlhf_dist.feedback.suspicion import Conduct, suspicions

HONEST = Conduct(seconds=12.0, gold=(9, 10), left=(30, 60), ties=(8, 68), reliability=0.9)
CASES = {
    "guesses": (Conduct(12.0, (0, 0), (30, 60), (8, 68), 0.52), "chooses the better answer 52% of the time"),
    "gold": (Conduct(12.0, (2, 10), (30, 60), (8, 68), 0.9), "2 of 10 gold questions right"),
    "left": (Conduct(12.0, (0, 0), (55, 60), (8, 68), 0.9), "chooses the answer on the left 92% of the time"),
    "right": (Conduct(12.0, (0, 0), (3, 60), (8, 68), 0.9), "chooses the answer on the right 95% of the time"),
    "equal": (Conduct(12.0, (0, 0), (0, 0), (60, 60), None), "says that answers are as good 100% of the time"),
    "haste": (Conduct(1.0, (0, 0), (30, 60), (8, 68), 0.9), "takes 1.0 s each"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_carelessness_is_told_in_a_sentence(case: str) -> None:
    own, told = CASES[case]
    (one,) = suspicions(own, [HONEST, HONEST])
    assert told in one


def test_somebody_honest_somebody_new_and_somebody_alone_are_not_suspected() -> None:
    assert suspicions(HONEST, [HONEST, HONEST]) == []
    assert suspicions(Conduct(), [HONEST]) == []
    assert suspicions(Conduct(1.0, (1, 1), (5, 5), (4, 9), None), []) == []


def test_a_coin_that_is_fair_is_rarely_called_one_sided() -> None:
    rng = np.random.default_rng(0)
    called = sum(
        bool(suspicions(Conduct(left=(int(left), 60), ties=(0, 60)), [])) for left in rng.binomial(60, 0.5, 2000)
    )
    assert called <= 8, "one in a thousand, by Poisson's 99.9 %"
