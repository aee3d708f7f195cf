"""Characters that people do not see, by which one text can look like another."""

from __future__ import annotations

import unicodedata

import regex

_UNSEEN = regex.compile(
    r"[[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]--[\u200c\u200d\p{Variation_Selector}]]",
    regex.VERSION1,
)
"""Controls, directions, private and half characters, line ends, fillers. Joiners are none: Persian and Indian scripts, and
emojis, are spelt with them."""
_UNDRAWN = regex.compile(
    r"[[\p{Cf}&&\p{Default_Ignorable_Code_Point}]--[\u200c\u200d\U000E0000-\U000E0FFF]]", regex.VERSION1
)
"""What takes no place among letters: soft hyphens, spaces without width, directions; not what emojis of flags are spelt with."""


def unseen(text: str) -> str | None:
    """The first character of a name that nobody sees, if there is one."""
    found = _UNSEEN.search(text)
    return None if found is None else str(found[0])


def alike(first: str, second: str) -> bool:
    """Whether two texts look the same: but for white space, characters that are not drawn, and ways to spell one letter."""
    return _drawn(first) == _drawn(second)


def _drawn(text: str) -> list[str]:
    drawn: str = text if text.isascii() else _UNDRAWN.sub("", unicodedata.normalize("NFC", text))
    return drawn.split()
