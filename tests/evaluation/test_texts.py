import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

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


@pytest.mark.parametrize(
    "text", ["yes", "Guten Morgen", "a b c", "今天天气很好", "猫", "ありがとう", "สวัสดี", "안녕", "नमस्ते"]
)
def test_the_same_text_has_a_bleu_of_100_however_short_and_in_any_script(text: str) -> None:
    assert texts.bleu([text], [text]) == pytest.approx(100)
    assert texts.bleu([text, "the cat sat on the mat"], [text, "the cat sat on the mat"]) == pytest.approx(100)
    assert texts.bleu([text], ["none of it"]) < 1e-6
    assert texts.self_bleu([text, text]) == pytest.approx(100)


@given(
    st.lists(
        st.lists(st.sampled_from(["cat", "dog", "sat,", "the", "mat."]), min_size=4, max_size=8), min_size=2, max_size=6
    )
)
def test_bleu_is_sacrebleus_where_a_text_has_four_words(words: list[list[str]]) -> None:
    said = [" ".join(each) for each in words]
    assert texts.bleu(said, said[::-1]) == pytest.approx(BLEU().corpus_score(said, [said[::-1]]).score)


def test_chinese_is_compared_by_character_as_sacrebleu_does() -> None:
    said, wanted = ["今天天气很好我们去公园吧", "我喜欢吃苹果。"], ["今天天气不好我们去公园玩", "我喜欢吃苹果!"]
    assert texts.bleu(said, wanted) == pytest.approx(BLEU(tokenize="zh").corpus_score(said, [wanted]).score)
    assert 20 < texts.bleu(said, wanted) < 90


def test_scripts_without_spaces_are_taken_by_character_with_its_marks() -> None:
    assert texts.distinct(["猫猫 猫", "cat猫"], 1) == pytest.approx(2 / 5)
    assert texts.distinct(["กี่กี่"], 1) == 1 / 2, "a consonant and its vowel sign are one"
    for other in ("བོད", "ꦗꦮ", "ꆈꌠ", "ㄋㄧ", "ᬩᬮ", "ᨠᨡ", "ｱｰ"):
        assert texts.distinct([other * 2], 1) == 1 / 2, other
    assert texts.self_bleu(["今天天气很好", "今天天气不好"]) > 20
    assert texts.rouge(["สวัสดี"], ["สวัส"])["rouge-1"] == pytest.approx(2 * 3 / (4 + 3))
    assert texts.rouge(["नमस्ते दोस्त"], ["नमस्ते मित्र"])["rouge-1"] == pytest.approx(1 / 2)


def test_accuracy_forgives_case_spaces_and_the_final_stop() -> None:
    assert texts.accuracy([" Good. ", "bad", "good"], ["good", "good", "good"]) == pytest.approx(2 / 3)
