"""Answers as their readers will see them: Markdown with code, tables and formulae, from text that may hold anything.

Nothing of a text becomes markup but what is made here: tags and attributes of HTML are its readers' to see, addresses are
followed to the web and to mail only, images are told and not fetched, and there is no style, id or script. What cannot be shown
so in bounded work, or would lose a word, is shown as it is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from html import escape, unescape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from rlhf_dist.feedback.formulae import mathml

LONGEST = 25_000
"""Characters beyond which a text is shown as it is written."""
WORK = 16_000
"""Steps that a text may take, each a rule of Markdown tried at a place: 1 to 3 µs, so that none takes much more than 50 ms. The
longest prose takes 14,000."""
FORMULA_STEPS = 4
"""What a formula's character takes, in steps."""
CELL_STEPS = 5
"""What a cell takes that a table is filled up with."""
MARK_STEPS = 2
"""What a character takes that may begin or end an emphasis."""
DIRECTED = {"p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "th", "td"}
FIRST_HEADING = 3
"""An answer's highest heading stands below those of the page."""
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WORD = re.compile(r"[^\W\d_]+")
_LINKED = re.compile(r"(https?://|mailto:)\S", re.IGNORECASE)
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)*")
_LANGUAGE = re.compile(r"[A-Za-z][\w+#.-]{0,29}", re.ASCII)
_FORMULA = re.compile(
    r"\\\((?P<round>(?:[^\\]|\\[^()])++)\\\)|\\\[(?P<square>(?:[^\\]|\\[^\[\]])++)\\\]|\$\$(?P<double>(?:[^$\\]|\\.)++)\$\$"
    # As in Pandoc: the first dollar stands before what is no blank, the last behind such and not before a digit. And no number
    # with a word behind it begins a formula. So prices stay.
    r"|(?<![\w$])\$(?!\s|\d[\d.,]*\s+[A-Za-z]{2})(?P<single>(?:[^$\\]|\\.)++)(?<!\s)\$(?![\d$])",
    re.DOTALL,
)
_CLOSING = {"$$": "$$", "\\[": "\\]"}
_DISPLAYED = ("square", "double")


class _OverBudget(Exception):
    """More work than a text may take."""


def plain(text: str) -> Markup:
    """A text as it is written, for a block that keeps white space; characters that would hide or move others are shown."""
    return Markup(escape(visible(text)))


def visible(text: str) -> str:
    """A text whose control characters, and those that change the direction of what follows, are seen by name."""
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n"))


def _named(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    return f"⟨U+{code:04X}⟩"


@lru_cache(maxsize=1024)
def rendered(text: str) -> Markup:
    """A text as HTML: CommonMark with GitHub's tables and strikethrough, and formulae as MathML.

    A line break stays one. Each block has its own direction, from its first letter that has one; code and formulae read from
    left to right. Headings are set below those of a page, without a step left out. What may be wider than the page scrolls by
    itself.

    Returns:
        Blocks; where that would take too much work, or lose a word, one `<div class="plain">` with the text as it is written.
    """
    written = visible(text)
    written = written[_BLANK_LINES.match(written).end() :].rstrip()  # type: ignore[union-attr]
    if len(written) <= LONGEST:
        env: dict[str, Any] = {"left": WORK - _within_rules(written), "labels": []}
        try:
            made: str = visible(_markdown().render(written, env))
        except (_OverBudget, RecursionError):
            made = ""
        if made and _keeps_words(written, made, env):
            return Markup(made)
    return Markup(f'<div class="plain" dir="auto">{escape(written)}</div>')


def _within_rules(text: str) -> int:
    """At most how many steps rules take inside: for tables, whose rows are filled up to the head's width, and emphases."""
    lines = text.split("\n")
    columns = max((line.count("|") for line in lines if not line.strip("|:- \t>")), default=0)
    return CELL_STEPS * columns * len(lines) + MARK_STEPS * sum(map(text.count, "*_~"))


def _keeps_words(text: str, made: str, env: dict[str, Any]) -> bool:
    """Whether all that was said is there: Markdown drops links' definitions, and cells that a table's head has no place for."""
    kept = _WORD.findall(" ".join([unescape(made), *env["labels"]]).casefold())
    return set(kept).issuperset(_WORD.findall(unescapeAll(text).casefold()))


class _Markdown(MarkdownIt):
    """Markdown whose links lead to the web or to mail, addresses as they are written."""

    def validateLink(self, url: str) -> bool:
        """Whether an address becomes a link."""
        return _LINKED.match(url) is not None

    def normalizeLink(self, url: str) -> str:
        """An address in a link."""
        return url

    def normalizeLinkText(self, link: str) -> str:
        """An address as it is shown."""
        return link


@cache
def _markdown() -> MarkdownIt:
    """The parser, whose every rule counts as a step."""
    made = _Markdown(
        "commonmark", {"html": False, "breaks": True, "xhtmlOut": False, "store_labels": True}, renderer_cls=_Page
    )
    made.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    made.inline.ruler.before("escape", "formula", _inline_formula)
    made.block.ruler.before(
        "fence", "formula", _block_formula, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    for ruler in (made.block.ruler, made.inline.ruler, made.inline.ruler2):
        for rule in ruler.__rules__:
            ruler.at(rule.name, _counted(rule.fn), {"alt": rule.alt})
    made.core.ruler.push("for_readers", _for_readers)
    return made


def _counted(rule: Callable[..., Any]) -> Callable[..., Any]:
    def counted(state: Any, *args: Any) -> Any:
        state.env["left"] -= 1
        if state.env["left"] < 0:
            raise _OverBudget
        return rule(state, *args)

    return counted


def _inline_formula(state: StateInline, silent: bool) -> bool:
    r"""A formula among words: $…$, $$…$$, \(…\), \[…\]."""
    if state.src[state.pos] not in "$\\":
        return False
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.markup = found[found.lastgroup or 0], found[0]
        token.meta = {"display": found.lastgroup in _DISPLAYED}
    state.pos = found.end()
    return True


def _block_formula(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""A formula that begins a line and ends one, without a blank line in it: $$…$$, \[…\]."""
    opening, line = _line(state, first)[:2], _line(state, first)[2:]
    closing = _CLOSING.get(opening)
    if closing is None or state.is_code_block(first):
        return False
    said, number = [line], first
    while closing not in line:
        number += 1
        if number >= last or state.sCount[number] < state.blkIndent:
            return False
        line = _line(state, number)
        if not line.strip() or (line.startswith(opening) and opening != closing):
            return False
        said.append(line)
    said[-1], _, behind = line.partition(closing)
    if behind.strip() or not "".join(said).strip():
        return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.content, token.block, token.map = "\n".join(said), True, [first, number + 1]
        token.markup = f"{opening}{token.content}{closing}"
        state.line = number + 1
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _for_readers(state: StateCore) -> None:
    """What blocks need beyond Markdown's own: directions, headings of ranks that fit the page, cells that name columns."""
    opened: list[Token] = []
    ranks: list[str] = []
    for token in state.tokens:
        if token.nesting == 1:
            opened.append(token)
            _dress(token, ranks)
        elif token.nesting == -1:
            token.tag = opened.pop().tag
        elif token.type == "inline":
            children = token.children or []
            _direct(opened, "".join(child.content for child in children if child.type == "text"))
            state.env["labels"] += [child.meta["label"] for child in children if "label" in child.meta]
            if opened[-1].tag == "th" and not token.content:
                opened[-1].tag = "td"  # a head that names nothing is none
                del opened[-1].attrs["scope"]


def _dress(token: Token, ranks: list[str]) -> None:
    if token.type == "heading_open":
        while ranks and ranks[-1] >= token.tag:
            ranks.pop()
        ranks.append(token.tag)
        token.tag = f"h{min(6, FIRST_HEADING - 1 + len(ranks))}"
    elif token.type in ("th_open", "td_open"):
        align = str(token.attrs.pop("style", "")).removeprefix("text-align:")
        token.attrs |= ({"scope": "col"} if token.tag == "th" else {}) | ({"class": align} if align else {})


def _direct(opened: Sequence[Token], text: str) -> None:
    """Give blocks that have no direction yet that of a text's first letter that has one, as HTML's `auto` would.

    `auto` itself finds none in a block whose text stands in blocks of their own.
    """
    kinds = (unicodedata.bidirectional(char) for char in text)
    found = next(("ltr" if kind == "L" else "rtl" for kind in kinds if kind in ("L", "R", "AL")), None)
    for token in opened:
        if found and token.tag in DIRECTED:
            token.attrs.setdefault("dir", found)


class _Page(RendererHTML):
    """What tokens look like that are not Markdown's own, or that must not be as it has them."""

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A table, and what scrolls where it is wider than the page."""
        return f"{_scrolling('Table')}{self.renderToken(tokens, idx, options, env)}"

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Its end."""
        return f"{self.renderToken(tokens, idx, options, env)}</div>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Code with its language, or a formula, as GitHub has it."""
        info = unescape(tokens[idx].info).strip()
        made = _affordable(tokens[idx].content, env, display=True) if info == "math" else None
        if made is not None:
            return f"{_scrolling('Formula', 'div', 'formula')}{made}</div>\n"
        language = _LANGUAGE.match(info)
        named = f' class="language-{language[0]}"' if language else ""
        label = f"Code, {info}" if info else "Code"
        return f"{_scrolling(label, 'pre')}<code{named}>{escape(tokens[idx].content)}</code></pre>\n"

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Code that is set in."""
        return self.fence(tokens, idx, options, env)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Code among words."""
        return f'<code dir="ltr">{escape(tokens[idx].content)}</code>'

    def formula(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A formula among words; as it is written where there is no other way."""
        token = tokens[idx]
        made = _affordable(token.content, env, display=token.meta["display"])
        if made is None:
            return f'<code class="formula" dir="ltr">{escape(token.markup)}</code>'
        return f'<span class="formula display">{made}</span>' if token.meta["display"] else made

    def formula_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A formula in a block of its own."""
        token = tokens[idx]
        made = _affordable(token.content, env, display=True)
        if made is None:
            return f'{_scrolling("Formula", "pre")}<code class="formula">{escape(token.markup)}</code></pre>\n'
        return f"{_scrolling('Formula', 'div', 'formula')}{made}</div>\n"

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A link that leads away from the page, and tells nobody where from."""
        if not tokens[idx].attrs["href"]:
            del tokens[idx].attrs["href"]  # `[a]()` would lead to the page itself
        tokens[idx].attrs |= {"rel": "noopener noreferrer nofollow", "target": "_blank"}
        return self.renderToken(tokens, idx, options, env)

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """What would be fetched from elsewhere, told."""
        token = tokens[idx]
        alt = self.renderInlineAsText(token.children, options, env) if token.children else ""
        told = " ".join(str(each) for each in (alt, token.attrs.get("title"), f"({token.attrs['src']})") if each)
        return f'<span class="image">Image: {escape(told)}</span>'


def _affordable(tex: str, env: dict[str, Any], *, display: bool) -> str | None:
    """A formula as MathML, if enough is left of what a text may take."""
    steps = FORMULA_STEPS * (len(tex) + 2 * tex.count("'"))  # the library makes three elements of a prime
    if steps > env["left"]:
        return None
    env["left"] -= steps
    return mathml(tex.strip(), display=display)


def _scrolling(label: str, tag: str = "div", kind: str = "wide") -> str:
    """The start of an element that can be reached by keyboard, since it may have to be scrolled by it.

    It is a group and no region, of which a page may have only one of a name.
    """
    direction = "" if kind == "wide" and tag == "div" else ' dir="ltr"'
    return f'<{tag} class="{kind}" role="group" tabindex="0" aria-label="{escape(label)}"{direction}>'
