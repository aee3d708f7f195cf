"""Texts that look alike, and characters that are not seen."""

import pytest

from rlhf_dist.data.characters import alike, unseen


@pytest.mark.parametrize(
    ("first", "second"),
    [("a b", "a\n  b "), ("word", "wo\u00adrd"), ("x", "x\u200b"), ("\ufeffx", "x"), ("caf\u00e9", "cafe\u0301")],
)
def test_texts_that_nobody_can_tell_apart_are_alike(first: str, second: str) -> None:
    assert alike(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a b", "ab"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"),  # a joiner is seen in Persian
        ("\U0001f3f4\U000e0067\U000e0062", "\U0001f3f4\U000e0066\U000e0072"),  # flags
        ("e", "\u00e9"),
        ("\u2764\ufe0f", "\u2764"),
    ],
)
def test_texts_that_are_seen_to_differ_are_not(first: str, second: str) -> None:
    assert not alike(first, second)


@pytest.mark.parametrize("odd", ["\0", "\x1b", "\u202e", "\u200b", "\u3164", "\ud800", "\ue000", "\u2028", "\n"])
def test_a_character_that_is_not_seen_is_found(odd: str) -> None:
    assert unseen(f"ann{odd}e") == odd
    assert unseen("Zo\u00eb \u0639\u0644\u06cc\u200c\u0631\u0636\u0627 \u2764\ufe0f") is None
