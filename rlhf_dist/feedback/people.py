"""Who may come in: invitations, browsers, and the tokens that forms bring. Tokens are kept as digests only."""

from __future__ import annotations

import secrets
from hashlib import sha256

from sqlalchemy import select
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.database import Annotator, Visit

TOKEN_BYTES = 32


def digest(token: str) -> str:
    """What the database keeps of a token. Tokens are 256 random bits, so a plain hash cannot be searched."""
    return sha256(token.encode()).hexdigest()


def invite(session: Session, name: str, *, supervisor: bool = False, replace: bool = True) -> str:
    """Make an invitation, or a new one in place of an old; returns the token, which is not kept.

    Args:
        session: an open transaction; the caller commits it.
        name: whom to invite.
        supervisor: whether they may supervise.
        replace: whether somebody who is known gets a new invitation, which ends the old one and their visits.

    Raises:
        DataError: the name is empty or too long, or known and not to be replaced.
    """
    name = name.strip()
    if not 0 < len(name) <= 80:
        raise DataError(f"annotator {name!r}: expected a name of 1 to 80 characters")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    known = session.scalar(select(Annotator).where(Annotator.name == name))
    if known is not None and not replace:
        raise DataError(f"{name} has an invitation already; expected a new name, or that the old link be replaced")
    if known is None:
        session.add(Annotator(name=name, supervisor=supervisor, token_hash=digest(token)))
    else:
        known.token_hash = digest(token)
        known.supervisor = known.supervisor or supervisor
        for visit in session.scalars(select(Visit).where(Visit.annotator_id == known.id)):
            session.delete(visit)  # whoever held the old invitation is out
    return token


def enter(session: Session, token: str, key: str | None = None) -> tuple[Annotator, str] | None:
    """Take an invitation; returns who came and the value of the browser's cookie, or None if there is no such invitation.

    A browser whose `key` is this annotator's keeps it, and with it the forms that it has open.
    """
    annotator = session.scalar(select(Annotator).where(Annotator.token_hash == digest(token)))
    if annotator is None:
        return None
    visit = visit_of(session, key)
    if key is not None and visit is not None and visit.annotator_id == annotator.id:
        return annotator, key
    key = secrets.token_urlsafe(TOKEN_BYTES)
    session.add(Visit(key_hash=digest(key), annotator_id=annotator.id, csrf=secrets.token_urlsafe(TOKEN_BYTES)))
    return annotator, key


def visit_of(session: Session, key: str | None) -> Visit | None:
    """Whose browser has this cookie."""
    return session.get(Visit, digest(key)) if key else None


def may_post(visit: Visit, csrf: str) -> bool:
    """Whether a form is one that we gave to this browser."""
    return secrets.compare_digest(visit.csrf.encode(), csrf.encode())
