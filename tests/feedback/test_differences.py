"""Which words differ: as difflib says, in work that no text makes long, and nothing where all would be marked."""

import re
import sys
from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.feedback.differences import LITTLE, LONG, STEPS, differences, why_unmarked

SENTENCES = ["The cat sat on the mat.", "Where is it?", "A dog, too, was there!", "Nobody came.", "$x^2$ is even."]


def marked(text: str, other: str) -> str:
    """A text with brackets around what is marked."""
    return "".join(f"[{piece}]" if differs else piece for piece, differs in differences(text, other)[0])


@given(st.text("ab .!\n0,"), st.text("ab .!\n0,"))
def test_pieces_join_to_the_texts(first: str, second: str) -> None:
    left, right = differences(first, second)
    assert "".join(text for text, _ in left) == first
    assert "".join(text for text, _ in right) == second
    if why_unmarked(first, second):
        assert not any(differs for _, differs in [*left, *right])
    else:
        assert [text for text, differs in left if not differs] == [text for text, differs in right if not differs]


@given(st.lists(st.sampled_from(SENTENCES), min_size=3, max_size=8), st.integers(0, 2), st.sampled_from(SENTENCES))
def test_ordinary_texts_are_marked_as_difflib_compares_their_words(said: list[str], place: int, new: str) -> None:
    first, second = " ".join(said), " ".join([*said[:place], new, *said[place + 1 :]])
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    codes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    expected = [("".join(a[i:j]), kind != "equal") for kind, i, j, _, _ in codes if j > i]
    assert differences(first, second)[0] == expected or why_unmarked(first, second) == LITTLE


def test_answers_with_little_in_common_are_not_marked_but_said() -> None:
    first = "The capital of France is Paris, a city on the Seine."
    assert why_unmarked(first, "Plants turn light, water and carbon dioxide into sugar and oxygen.") == LITTLE
    assert why_unmarked(first, first) == ""
    assert marked(first, first.replace("Paris", "Lyon")) == "The capital of France is [Paris], a city on the Seine."


def test_long_answers_are_still_compared_by_words_or_sentences() -> None:
    words = [f"word{number * number % 997}" for number in range(1500)]
    changed = [*words[:700], "new", *words[701:]]
    assert marked(" ".join(changed), " ".join(words)).count("[") == 1
    assert "[new ]" in marked(" ".join(changed), " ".join(words))
    lines = [f"{line % 7} 0 0 0 0 0 0 0 0 number {line}.\n" for line in range(500)]
    assert marked("".join([*lines[:9], "0 0 new.\n", *lines[9:]]), "".join(lines)) == "".join(
        [*lines[:9], "[0 0 new.\n]", *lines[9:]]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0, " * 512, "0 " * 512),
        ("! " * 1_000, "!" * 2_000),
        ("a " * 5_000, "a " * 5_000 + "b"),
        ("a b " * 3_000, "b a " * 3_000),
        ("0 " * 90, "0, " * 90),
        ("x\n" * 7_000, "x\n" * 7_500),
        ("a. " * 5_000, "b. " * 5_000),
        ("a" * 15_000, "b" * 15_000),
        ("".join(f"{n} " for n in range(2_000)), "".join(f"{n} " for n in reversed(range(2_000)))),
    ],
)
def test_no_two_texts_take_more_than_three_comparisons_steps(first: str, second: str) -> None:
    steps = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal steps
        steps += event == "c_call"  # difflib looks each equal pair up

    sys.setprofile(count)
    try:
        differences(first, second)
    finally:
        sys.setprofile(None)
    assert steps < 3 * 2 * STEPS


def test_what_is_too_long_is_shown_without_marks() -> None:
    first, second = "a " * 20_000, "b " * 20_000
    assert differences(first, second) == ([(first, False)], [(second, False)])
    assert why_unmarked(first, second) == LONG
