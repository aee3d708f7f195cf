"""What a text becomes on the page: nothing of it is markup, nothing of it is lost, and it takes bounded work."""

import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.feedback.formulae import ATTRIBUTES, ELEMENTS, mathml
from rlhf_dist.feedback.rendering import LONGEST, plain, rendered

TAGS = {
    *("p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "em", "strong", "s", "code", "pre", "a"),
    *("table", "thead", "tbody", "tr", "th", "td", "div", "span"),
}
OWN = {"dir", "class", "role", "tabindex", "aria-label", "scope", "start", "href", "title", "rel", "target"}
CLASSES = re.compile(r"wide|formula|formula display|plain|image|left|right|center|language-[A-Za-z][\w+#.-]*", re.ASCII)
NASTY = [
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<a href='javascript:x'>", "</div>", "<!--", "]]>"),
    *("[a](javascript:alert(1))", "[a](data:text/html,x)", "[a](file:///etc/passwd)", "[a](JaVaScRiPt:x)", "[a](//b.c)"),
    *("[a](http://b.c/\"onclick=x)", "[a](<http://b.c/ onclick=x>)", "![i](http://b.c/p.png)", "![](data:x)", "<http://a.b>"),
    *("[a]: http://b.c 't\"<i>'\n", "[a]", "![a][a]", "```py onload=x\n", "~~~\"><script>\n", "`", "``", "    ", "\t"),
    *("$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac{", "\\text{<img src=x onerror=y>}", "\\href{javascript:x}{y}", "}", "{"),
    *("\\style{color:red}{x}", "\\class{a}{b}", "\\color{red}x", "\\unicode{x3c}", "\\def\\a{\\a}", "\\begin{aligned}", "&#x3c;"),
    *("\\end{aligned}", "x^2", "_", "^", "'", "&amp;", "&lt;b&gt;", "&#8238;", "\u202e", "\0", "\ud800", "\x85", "\x1b[2J"),
    *("*", "**", "_", "~~", "|", "|-|\n", "|a|b|\n", "- ", "1. ", "> ", "# ", "\n", "\n\n", " ", "word", "ein", "слово", "مرحبا"),
]  # fmt: skip
texts = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=40).map("".join))


class Seen(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open, self.crossed = "", list[str](), list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.crossed.append(f"comment {data}")

    handle_decl = unknown_decl = handle_pi = handle_comment

    def told(self) -> str:
        return " ".join([self.text, *(str(value) for _, attrs in self.tags for value in attrs.values())])


@settings(max_examples=200, deadline=None)
@given(texts)
def test_nothing_of_a_text_becomes_markup_of_its_own(text: str) -> None:
    seen = Seen(rendered(text))
    assert not seen.open
    assert not seen.crossed
    for tag, attrs in seen.tags:
        mathematics = tag in ELEMENTS
        assert mathematics or tag in TAGS, tag
        for name, value in attrs.items():
            assert name in (ATTRIBUTES | {"display", "dir", "encoding"} if mathematics else OWN), (tag, name)
            assert name != "href" or re.match(r"(https?://|mailto:)", value or "", re.IGNORECASE), value
            assert name != "class" or CLASSES.fullmatch(value or ""), value
        if tag == "a":
            assert (attrs["rel"], attrs["target"]) == ("noopener noreferrer nofollow", "_blank")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(NASTY), st.text("abcdef éß", min_size=1)), max_size=40).map("".join))
def test_no_word_is_lost(text: str) -> None:
    entities = re.sub(r"&#?\w+;", " ", text)
    told = Seen(rendered(text)).told().casefold()
    for word in re.findall(r"[^\W\d_]+", entities):
        assert word.casefold() in told or f"[{word}]" in text, word
    assert Seen(plain(text)).text == plain(text).unescape()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*NASTY, "\\sqrt", "\\left(", "\\right)", "\\hspace{-99em}", "\\rule{9em}{99em}", "\\mbox{$<b>$}"]
        )
    )
)
def test_formulae_are_mathematics_and_nothing_else(parts: list[str]) -> None:
    made = mathml("".join(parts), display=True)
    for tag, attrs in Seen(made or "").tags:
        assert tag in ELEMENTS
        assert attrs.keys() <= ATTRIBUTES | {"display", "dir", "encoding"}
        lengths = [float(each) for value in attrs.values() for each in re.findall(r"\d*\.?\d+", value or "")]
        assert all(length < 10 for length in lengths), "nothing lies over something else"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree", '<p dir="ltr">one<br>\ntwo</p>\n<p dir="ltr">three</p>'),
        ("\n \n    code\n\n", "<code>code\n</code>"),
        ("**b** *i* ~~s~~ `<c>`", '<strong>b</strong> <em>i</em> <s>s</s> <code dir="ltr">&lt;c&gt;</code>'),
        ("```python\nx < y\n```", '<code class="language-python">x &lt; y\n</code></pre>'),
        ("a $x^2$ b", "<msup><mi>x</mi><mn>2</mn></msup>"),
        (r"a \(x^2\) b", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("a $$x^2$$ b", '<span class="formula display"><math display="block"'),
        (r"a \[x^2\] b", '<span class="formula display"><math display="block"'),
        ("text\n\\[\na\n- b\n\\]\nmore", "<mi>a</mi><mo>−</mo><mi>b</mi>"),
        ("1. one\n   $$\n   a = b\n   $$", "<mi>a</mi><mo>=</mo><mi>b</mi>"),
        ("> $$a\n> = b$$", "<mi>a</mi><mo>=</mo><mi>b</mi>"),
        ("```math\na < b\n```", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        ("$\\begin{aligned}a&=b\\\\c&=d\\end{aligned}$", "<mtd columnalign=\"left\"><mi></mi><mo>=</mo><mi>d</mi></mtd>"),
        ("It costs $5 and $6.", "It costs $5 and $6."),
        ("US$5, $6 or 7$ and \\$8", "US$5, $6 or 7$ and $8"),
        ("$\\href{https://a.b}{c}$", '<code class="formula" dir="ltr">$\\href{https://a.b}{c}$</code>'),
        ("$\\frac{1$", '<code class="formula" dir="ltr">$\\frac{1$</code>'),
        ("$\\unheard{x}$", '<code class="formula" dir="ltr">$\\unheard{x}$</code>'),
        ("![a *b*](http://c.d/e.png)", '<span class="image">Image: a b (http://c.d/e.png)</span>'),
        ("[a](javascript:b)", "[a](javascript:b)"),
        ("[a](/supervise)", "[a](/supervise)"),
        ("[a]()", '<a rel="noopener noreferrer nofollow" target="_blank">a</a>'),
        ("```math\n\\unheard\n```", "<code class=\"language-math\">\\unheard\n</code>"),
        ("[a][1]\n\n[1]: http://b.c", '<a href="http://b.c" rel="noopener noreferrer nofollow" target="_blank">a</a>'),
        ("seen\n\n[hidden]: # (words)", "[hidden]: # (words)"),
        ("|a|\n|-|\n|b|lost|", "|b|lost|"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
        ("مرحبا\n\n- hi\n- سلام", '<p dir="rtl">مرحبا</p>\n<ul dir="ltr">\n<li dir="ltr">hi</li>\n<li dir="rtl">سلام</li>'),
        ("> `code` שלום", '<blockquote dir="rtl">\n<p dir="rtl"><code dir="ltr">code</code> שלום</p>'),
        ("a \u202eb&#8238;c", "a ⟨U+202E⟩b⟨U+202E⟩c"),
    ],
)  # fmt: skip
def test_texts_are_shown_as_they_are_meant(text: str, expected: str) -> None:
    assert expected in rendered(text)


def test_tables_have_named_columns_and_scroll_by_keyboard() -> None:
    seen = Seen(rendered("| | right |\n|-|-:|\n|a|b|"))
    assert seen.tags[0] == ("div", {"class": "wide", "role": "group", "tabindex": "0", "aria-label": "Table"})
    assert [attrs for tag, attrs in seen.tags if tag == "th"] == [{"scope": "col", "class": "right", "dir": "ltr"}]
    assert [tag for tag, _ in seen.tags if tag in ("th", "td")] == ["td", "th", "td", "td"], (
        "an empty head names nothing"
    )


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_headings_stay_below_the_pages_and_leave_no_rank_out(levels: list[int]) -> None:
    text = "\n\n".join(f"{'#' * level} x" for level in levels)
    ranks = [int(tag[1]) for tag, _ in Seen(rendered(text)).tags if tag[0] == "h"]
    assert min(ranks) == ranks[0] == 3
    assert all(after <= before + 1 for before, after in pairwise(ranks))
    for (one, other), (before, after) in zip(pairwise(levels), pairwise(ranks), strict=True):
        assert (after > before) == (other > one) or after == 6, "what was set deeper still is"


def test_what_would_hide_or_move_others_is_seen_in_the_raw_text() -> None:
    assert plain("a\r\n\tb") == "a\n\tb"
    assert plain("\0\x1b[2J\x7f\x85\r") == "␀␛[2J␡⟨U+0085⟩␍"
    assert plain("\u202e\u2066<\ud800") == "⟨U+202E⟩⟨U+2066⟩&lt;⟨U+D800⟩"


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, which grows with the time that work takes, and not with the machine's load."""
    found = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


UNITS = [
    *("! ", "[", "![", "[a](", "*a ", "*a**", "**", "_", "> "),
    *("> a\n", "- a\n", "$", "$$\n", "\\[\n", "\\(", "`", "|"),
    "|a|b|\n|-|-|\n",
    *("<", "&", "\\", "# a\n", "a\n=\n", "---\n", "[a]: b\n", "$x$ ", "$x' ", " ", "\n", "- a\n\n"),
    *("~~a ", "```\n", "\\frac{", "<a@b.c>"),
    "|" + "a|" * 60 + "\n|" + "-|" * 60 + "\n" + "|\n" * 300,
    "".join(f"{'  ' * depth}- a\n" for depth in range(60)),
    "".join("`" * length + " " for length in range(1, 100)),
    "$\\frac{" + "\\frac{" * 200 + "$\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_more_work_than_long_prose_does_ten_times(unit: str) -> None:
    rendered("$x$")  # the parser, and the library's table of symbols
    prose = ("The quick brown fox jumps over **the lazy** dog, and `so` on [here](http://a.b/c).\n" * 999)[:9_000]
    rendered.cache_clear()
    bound = 10 * calls_of(lambda: rendered(prose))
    for length in (5_000, LONGEST):
        text = (unit * (length // len(unit) + 1))[:length]
        rendered.cache_clear()
        mathml.cache_clear()
        assert calls_of(lambda text=text: rendered(text)) < bound, length


def test_what_takes_too_much_work_is_shown_as_it_is_written() -> None:
    text = "*a <b> " * 3_500
    assert rendered(text) == f'<div class="plain" dir="auto">{plain(text).rstrip()}</div>'


def test_formulae_beyond_the_budget_are_shown_as_they_are_written() -> None:
    page = rendered("$a+b$ " * 3_000)
    assert page.count("<math ") > 100
    assert '<code class="formula" dir="ltr">$a+b$</code>' in page
