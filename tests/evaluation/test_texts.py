import math

import pytest

from rlhf_dist.evaluation import texts


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
