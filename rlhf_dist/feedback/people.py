"""Who may come in: invitations, browsers, and the tokens that forms bring. Tokens are kept as digests only."""

from __future__ import annotations

import secrets
import unicodedata
from datetime import timedelta
from hashlib import sha256

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.orm import Session

from rlhf_dist.data.characters import unseen
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.database import Annotator, Shown, Visit, now
from rlhf_dist.files import shown

TOKEN_BYTES = 32
LONGEST_NAME = 80
LONGEST_VISIT = timedelta(days=90)
LONGEST_ABSENCE = timedelta(days=14)
"""A browser that has not come for so long must bring its invitation again."""
NOTED = timedelta(hours=1)
"""How exactly it is noted when a browser last came."""
_VISIT = select(Visit).where(Visit.key_hash == bindparam("key"))  # built once: each request asks it


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: str) -> str:
    """What the database keeps of a token. Tokens are 256 random bits, so a plain hash cannot be searched."""
    return sha256(token.encode()).hexdigest()


def invite(
    session: Session, name: str, *, supervisor: bool = False, replace: bool = True, token: str | None = None
) -> str:
    """Make an invitation, or a new one in place of an old; returns the token, which is not kept.

    Args:
        session: an open transaction; the caller commits it.
        name: whom to invite.
        supervisor: whether they may supervise.
        replace: whether somebody who is known gets a new invitation, which ends the old one and their visits.
        token: one that was made before; asked twice with it, it is the same invitation. None: a new one.

    Raises:
        DataError: the name is empty, too long or cannot be read, or known and not to be replaced.
    """
    name = checked_name(name)
    token = token or new_token()
    if len(token) < TOKEN_BYTES:
        raise DataError("the invitation's token is too short; expected one that this page made")
    known = session.scalar(select(Annotator).where(Annotator.name == name))
    if known is None:
        session.add(Annotator(name=name, supervisor=supervisor, token_hash=digest(token)))
        return token
    if known.token_hash == digest(token):
        return token
    if not replace:
        raise DataError(f"{name} has an invitation already; expected a new name, or that the old link be replaced")
    _end_visits(session, known.id)  # whoever held the old invitation is out
    known.token_hash = digest(token)
    known.supervisor = known.supervisor or supervisor
    return token


def checked_name(name: str) -> str:
    """A name with one space between its words, and none around them.

    Raises:
        DataError: it is empty or too long, or has characters that are not seen and can make it look like another.
    """
    bare = name.strip()
    if not 0 < len(bare) <= LONGEST_NAME:
        raise DataError(f"annotator {shown(bare)}: expected a name of 1 to {LONGEST_NAME} characters")
    odd = unseen(bare)
    if odd is not None:
        raise DataError(f"annotator {bare!r}: the name has the character {odd!r}; expected only ones that are seen")
    return unicodedata.normalize("NFC", " ".join(bare.split()))


def sign_out(session: Session, annotator_id: int) -> None:
    """End somebody's visits and their invitation; what they said stands."""
    _end_visits(session, annotator_id)
    session.execute(delete(Shown).where(Shown.annotator_id == annotator_id))
    session.execute(update(Annotator).where(Annotator.id == annotator_id).values(token_hash=digest(new_token())))


def _end_visits(session: Session, annotator_id: int) -> None:
    session.execute(delete(Visit).where(Visit.annotator_id == annotator_id))


def invited(session: Session, token: str) -> Annotator | None:
    """Whose invitation this is."""
    return session.scalar(select(Annotator).where(Annotator.token_hash == digest(token)))


def enter(session: Session, annotator: Annotator, key: str | None) -> str:
    """Let somebody who is invited in; returns the value of their browser's cookie.

    A browser whose `key` is this annotator's keeps it, and with it the forms that it has open.
    """
    visit = visit_of(session, key)
    if key is not None and visit is not None and visit.annotator_id == annotator.id:
        return key
    key = new_token()
    session.add(Visit(key_hash=digest(key), annotator_id=annotator.id, csrf=new_token()))
    return key


def visit_of(session: Session, key: str | None) -> Visit | None:
    """Whose browser has this cookie; None too where the visit has ended by itself."""
    visit = session.scalar(_VISIT, {"key": digest(key)}) if key else None
    if visit is None:
        return None
    ended = now() - visit.created > LONGEST_VISIT or now() - (visit.used or visit.created) > LONGEST_ABSENCE
    return None if ended else visit


def note_use(visit: Visit) -> None:
    """Note that a browser came; rarely, as each note is a write."""
    if visit.used is None or now() - visit.used > NOTED:
        visit.used = now()


def may_post(visit: Visit, csrf: str) -> bool:
    """Whether a form is one that we gave to this browser."""
    return secrets.compare_digest(visit.csrf.encode(), csrf.encode())
