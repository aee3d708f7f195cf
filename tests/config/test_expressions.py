"""Users' regular expressions mean what Python's `re` says, and end."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.config.expressions import expression

PIECES = [
    "a",
    "b",
    "{",
    "}",
    "e",
    "1",
    ",",
    "<=",
    "a{2}",
    "a{,2}",
    "a{1,2}",
    "(?:ab)",
    "[{e}]",
    "[^a]",
    r"\{",
    r"\d",
    r"\b",
]
PIECES += ["(a|b)", "a*?", "^", "$", ".", "(?=b)", r"\N{DIGIT ONE}", "{e}", "{i<=1}", r"\\", "(?i:A)", "(?<!a)", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text("abAe{}12<=, \\\n", max_size=8))
@settings(max_examples=500, deadline=None)
def test_whatever_re_takes_matches_alike(pattern: str, text: str) -> None:
    try:
        theirs = re.compile(pattern)
    except re.error:
        with pytest.raises(ValueError, match="regular expressions"):
            expression(pattern)
        return
    found, wanted = expression(pattern).search(text, timeout=10), theirs.search(text)
    assert (found and found.span()) == (wanted and wanted.span())


@pytest.mark.parametrize("pattern", ["(", r"\p{L}", "[[:alpha:]]", "[a--b]", "(?V1)a", r"\L<words>"])
def test_what_regex_alone_knows_or_reads_otherwise_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{pattern!r} is none")):
        expression(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_search_ends_in_time(pattern: str) -> None:
    begun = time.monotonic()
    try:
        assert expression(pattern).search("a" * 40 + "b", timeout=0.2) is None
    except TimeoutError:
        assert time.monotonic() - begun >= 0.2
