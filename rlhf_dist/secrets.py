"""What nobody may read in a terminal, a file, a log or a message: credentials in URLs, and the values of named secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"
SHORTEST = 4
"""Characters of a secret; what is shorter stands in any text, and hides nothing."""

_USER = re.compile(r"(\w://)[^\s/?#\"'<>]*@")
"""Who logs in, before the host of a URL; a password may hold an @."""
_PASSWORD_WITH_SLASH = re.compile(r"(\w://[^\s/:@\"'<>]*:)[^\s\"'<>]*@")
"""One that should have been quoted, and still is one."""
_QUERY = re.compile(r"(\w://[^\s?\"'<>]*\?)[^\s\"'<>]+")

_known: dict[str, str] = {}
"""Secrets that this process was given, by the names of their environment variables."""


class Secrets(dict[str, str]):
    """Values by the names of their environment variables; shown, it hides them."""

    def __repr__(self) -> str:
        """The names alone."""
        return f"Secrets({', '.join(sorted(self))})"

    __str__ = __repr__


def masked(text: str) -> str:
    """The text without users, passwords and queries of URLs, and without the secrets that this process knows."""
    for value in sorted(_known.values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN) if len(value) >= SHORTEST else text
    if "://" not in text:
        return text
    text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    text = _PASSWORD_WITH_SLASH.sub(rf"\g<1>{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", text)


def keep(values: Mapping[str, str]) -> None:
    """From now on, this process knows these secrets, and `masked` hides them too."""
    _known.update(values)


def secret(variable: str) -> str:
    """A secret that this process knows."""
    return _known[variable]
