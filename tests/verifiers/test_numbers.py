"""Numbers in answers, however they are written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.verifiers import numeric
from rlhf_dist.verifiers.numbers import number_in


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 7.", 7),
        ("3 apples and 4 pears", 4),
        ("1,234,567.5 in all", Fraction("1234567.5")),
        ("12,34", 34),
        (r"\boxed{1{,}000}", 1000),
        ("$1,050", 1050),
        ("-5", -5),
        ("− 3 is no sign, −3 is", -3),
        ("3 - 4", 4),
        ("3-4", 4),
        ("x = -4", -4),
        ("50%", Fraction(1, 2)),
        (r"50\%", Fraction(1, 2)),
        ("3/4.", Fraction(3, 4)),
        (r"\boxed{-\dfrac{3}{4}}, or 5", Fraction(-3, 4)),
        (r"so \boxed{1} and \boxed{2 + \text{3}}", 3),
        (r"\boxed{12", 12),
        ("because 9\n#### 12\n", 12),
        (".5", Fraction(1, 2)),
        ("1.5e-3", Fraction("0.0015")),
        ("1/0", None),
        ("1e999999999", None),
        ("9" * 1000, None),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_comes_to(text: str, number: Fraction | int | None) -> None:
    assert number_in(text) == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_a_number_is_itself_in_every_notation(whole: int, digits: int) -> None:
    value = Fraction(whole, 10**digits)
    plain = f"{float(value):.{digits}f}" if abs(whole) < 10**9 else str(whole)
    right = Fraction(plain)
    grouped = f"{abs(int(right)):,}"
    assert number_in(f"The answer is {plain}.") == right
    assert number_in(rf"\boxed{{{plain}}}") == right
    assert number_in(f"so it is {grouped}") == abs(int(right))
    assert numeric("", f"{plain}", plain) == 1.0
    assert numeric("", f"1 {plain}", str(right + max(1, abs(right)))) == 0.0


@given(st.text(max_size=200))
def test_no_text_is_too_strange(text: str) -> None:
    number_in(text)


def test_the_tolerance_is_a_share_of_the_target_and_zero_is_zero() -> None:
    assert numeric("", "3.14159", 3.14159265) == 1.0
    assert numeric("", "3.14", 3.14159265) == 0.0
    assert numeric("", "3.14", 3.14159265, tolerance=0.01) == 1.0
    assert numeric("", "0.0000001", 0) == 0.0
    assert numeric("", "no idea", 3) == 0.0
    assert numeric("", "72", "48/2 = 24 each\n#### 72") == 1.0


def test_a_row_without_a_target_has_no_score_and_a_target_without_a_number_is_an_error() -> None:
    assert numeric("", "1", None) is None
    with pytest.raises(ValueError, match="target is 'many'; expected a number"):
        numeric("", "1", "many")
