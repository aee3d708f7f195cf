"""LaTeX formulae as MathML that holds nothing but mathematics: no address, style, colour, or name that another text could use."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from typing import Any

ELEMENTS = {
    "math", "semantics", "annotation", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot",
    "msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded",
    "mphantom", "menclose",
}  # fmt: skip
ATTRIBUTES = {
    "accent", "columnalign", "columnlines", "columnspacing", "depth", "displaystyle", "fence", "form", "height",
    "largeop", "linebreak", "linethickness", "lspace", "mathsize", "mathvariant", "maxsize", "minsize",
    "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy",
    "voffset", "width",
}  # fmt: skip
PARTS = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3}
"""How many children an element must have; one with others is not shown as it is meant."""
COLOURS = {"mathcolor", "mathbackground", "border-color"}
"""Attributes left out: a colour can hide what is said from those who judge it."""
_VALUE = re.compile(r"[a-z-]+( [a-z-]+)*|[-+]?\d?(\.\d+)?(em|ex|px|pt|mu)?( \d?(\.\d+)?(em|ex|px|pt))*")
"""Words, and lengths below ten of a unit, so that nothing leaves its place to lie on something else."""
_CHARACTER = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([A-Za-z]+\*?)\}")
_SAME = {
    "aligned": "align*", "align": "align*", "alignedat": "align*", "eqnarray": "align*", "eqnarray*": "align*", "split": "align*",
    "gather": "matrix", "gather*": "matrix", "gathered": "matrix", "dcases": "cases", "multline": "matrix", "multline*": "matrix",
}  # fmt: skip
"""Environments that the library lacks, or numbers, by those that look like them."""
_KNOWN = {
    "align*", "array", "cases", "matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix",
    "substack", "matrix*", "pmatrix*", "bmatrix*", "Bmatrix*", "vmatrix*", "Vmatrix*",
}  # fmt: skip
_BARE = ("equation", "equation*", "displaymath", "math")
"""Environments that say no more than that there is a formula."""
_DEFINES = re.compile(r"\\(def|newcommand|newenvironment|DeclareMathOperator)(?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]")


class _Strange(Exception):
    """Nothing that is known to be harmless, or to be shown as it is meant."""


@lru_cache(maxsize=4096)
def mathml(tex: str, *, display: bool) -> str | None:
    """A formula as a `math` element with its source as annotation.

    Args:
        tex: the formula without its delimiters.
        display: whether it stands alone.

    Returns:
        None: the library does not know all of it, or what it makes of it is not known to be harmless.
    """
    from latex2mathml.converter import convert_to_element

    kind = "block" if display else "inline"
    try:
        said = _written(convert_to_element(_known(tex), display=kind)[0])
    except Exception:  # noqa: BLE001 - the library fails on bad LaTeX in any way, RecursionError and StopIteration too
        return None
    source = f'<annotation encoding="application/x-tex">{escape(tex)}</annotation>'
    return f'<math display="{kind}" dir="ltr"><semantics>{said}{source}</semantics></math>'


def _known(tex: str) -> str:
    """LaTeX with the environments that the library knows."""
    if _DEFINES.search(tex):
        raise _Strange("a macro may grow without bounds")
    return _ENVIRONMENT.sub(_environment, tex)


def _environment(found: re.Match[str]) -> str:
    name = _SAME.get(found[2], found[2])
    if name in _BARE:
        return " "
    if name not in _KNOWN:
        raise _Strange(name)
    return f"\\{found[1]}{{{name}}}"


def _written(element: Any) -> str:
    """An element as HTML, from names and values that are known."""
    if element.tag not in ELEMENTS or len(element) != PARTS.get(element.tag, len(element)):
        raise _Strange(element.tag)
    if strange := set(element.keys()) - ATTRIBUTES - COLOURS:
        raise _Strange(strange)
    kept = [(name, value) for name, value in element.items() if name in ATTRIBUTES and _VALUE.fullmatch(value)]
    attributes = "".join(f' {name}="{value}"' for name, value in kept)
    text = element.text or ""
    if _COMMAND.match(text) and element.tag != "mtext":
        raise _Strange(text)
    inner = escape(_CHARACTER.sub(_character, text)) + "".join(map(_written, element))
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>"


def _character(found: re.Match[str]) -> str:
    """What the library writes as a reference."""
    code = int(found[1], 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise _Strange(found[0])
    return chr(code)
