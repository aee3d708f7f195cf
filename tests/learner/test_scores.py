import pytest

from rlhf_dist.config import Algorithm
from rlhf_dist.learner.scores import shaped_score


@pytest.mark.parametrize(
    ("settings", "score", "cut", "expected"),
    [
        ({}, 7.0, True, 7.0),
        ({"score_clip": 5.0}, 7.0, False, 5.0),
        ({"score_clip": 5.0}, -7.0, False, -5.0),
        ({"score_clip": 5.0}, 4.0, False, 4.0),
        ({"missing_eos_penalty": 1.5}, 2.0, True, 0.5),
        ({"missing_eos_penalty": 1.5}, 2.0, False, 2.0),
        ({"overlong_share": 0.5, "overlong_penalty": 4.0}, 2.0, False, 1.2),
        ({"score_clip": 5.0, "missing_eos_penalty": 1.5, "overlong_share": 0.5}, 9.0, True, 5.0 - 1.5 - 0.2),
    ],
)
def test_a_score_is_clipped_and_then_pays_for_its_end_and_its_length(
    settings: dict[str, float], score: float, cut: bool, expected: float
) -> None:
    found = shaped_score(score, Algorithm(**settings), cut=cut, length=60, longest=100)
    assert found == pytest.approx(expected)
