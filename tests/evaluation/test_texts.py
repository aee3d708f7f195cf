import math

import numpy as np
import pytest

from rlhf_dist.evaluation import texts
from rlhf_dist.evaluation.intervals import WinRate, interval, win_rate


def test_distinct_counts_n_grams() -> None:
    assert texts.distinct(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert texts.distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert math.isnan(texts.distinct(["a"], 2))
    assert math.isnan(texts.distinct(["", " "], 1))


def test_self_bleu_is_high_for_echoes_and_low_for_strangers() -> None:
    assert texts.self_bleu(["the same words again and again"] * 5) == pytest.approx(100)
    assert texts.self_bleu([f"w{n}a w{n}b w{n}c w{n}d" for n in range(5)]) < 5
    assert math.isnan(texts.self_bleu(["alone"]))


def test_texts_without_a_word_are_not_varied() -> None:
    assert math.isnan(texts.self_bleu(["", " "]))
    assert math.isnan(texts.self_bleu(["", "a b c d"]))
    assert texts.self_bleu(["a b c d", "", "a b c d"]) == pytest.approx(100)


def test_measures_against_targets_are_perfect_for_equal_texts_and_known_otherwise() -> None:
    same = ["the cat sat on the mat today", "dogs bark loudly at night outside"]
    assert texts.bleu(same, same) == pytest.approx(100)
    assert texts.chrf(same, same) == pytest.approx(100)
    assert texts.rouge(same, same) == {"rouge-1": 1.0, "rouge-2": 1.0, "rouge-l": 1.0}
    found = texts.rouge(["the cat sat"], ["the cat ran"])
    assert found["rouge-1"] == pytest.approx(2 / 3)
    assert found["rouge-2"] == pytest.approx(1 / 2)
    russian = texts.rouge(["кот сидит здесь"], ["Кот сидит там."])
    assert russian["rouge-1"] == pytest.approx(2 / 3)
    assert texts.rouge(["猫在家"], ["猫在屋"])["rouge-1"] == pytest.approx(2 / 3)
    assert texts.bleu(["x y z w"], ["a b c d"]) < 1


def test_accuracy_forgives_case_spaces_and_the_final_stop() -> None:
    assert texts.accuracy([" Good. ", "bad", "good"], ["good", "good", "good"]) == pytest.approx(2 / 3)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = [
        (found := interval(rng.normal(1.0, 2.0, 60).tolist(), seed=n)).low <= 1.0 <= found.high for n in range(200)
    ]
    assert 0.90 <= np.mean(covered) <= 0.985
    one = interval([0.5] * 10)
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5)


def decided(found: WinRate) -> bool:
    return not found.rate.low <= 0.5 <= found.rate.high


def test_a_few_wins_in_a_row_are_not_certainty() -> None:
    found = win_rate([1.0] * 10)
    assert (found.rate.mean, found.rate.high) == (1.0, pytest.approx(1.0))
    assert found.rate.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6), "Wilson's bound for n of n"
    assert decided(found)
    assert not decided(win_rate([0.0]))
    assert not decided(win_rate([1.0] * 3))
    for ties in (1, 2, 3, 8):
        told = win_rate([0.5] * ties).rate
        assert told.low == pytest.approx(1 - told.high), "an even match is even"
        assert told.high > 0.6


def test_a_win_rate_counts_ties_half_and_knows_when_it_is_open() -> None:
    even = win_rate([1.0, 0.0] * 50)
    assert not decided(even)
    clear = win_rate([1.0] * 80 + [0.5] * 10 + [0.0] * 10)
    assert decided(clear)
    assert (clear.wins, clear.ties, clear.losses, clear.rate.mean) == (80, 10, 10, pytest.approx(0.85))


def test_what_one_value_cannot_say_is_no_number() -> None:
    found = interval([0.25])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(interval([]).mean)
