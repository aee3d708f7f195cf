"""What every page has: its frame, who may ask for it, and the doors before it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio.to_thread
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_dist.feedback import people
from rlhf_dist.feedback.database import transaction

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent / "page"
HEADERS = {
    # Answers are other people's text and may hold anything: nothing but our own files may run or be loaded.
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
LARGEST_BODY = 1 << 18
"""Bytes of a form: the longest comment and the most marked passages, spelled out."""


GLANCE_S = 2.0
T = TypeVar("T")


class NotInvited(Exception):
    """A browser without an invitation, or a form that we did not give to it."""


class Site:
    """Where a page is: its database, its cookie, and the path that it lies under."""

    def __init__(self, engine: Engine, store: str, base_url: str | None) -> None:
        """Take an open database.

        Args:
            engine: of the database.
            store: the store's own name, by which its cookies differ from those of another page on the same host.
            base_url: how people reach the page; None: under any address, at its root.
        """
        self.engine = engine
        self.cookie = f"feedback-{store}"
        self._glances: dict[str, tuple[float, Any]] = {}
        self.base_url = base_url.rstrip("/") if base_url else None
        self.base = urlsplit(self.base_url).path if self.base_url else ""

    def glance(self, name: str, look: Callable[[], T]) -> T:
        """What changes rarely, or matters little to the second, as it was at most `GLANCE_S` ago."""
        when, value = self._glances.get(name, (-math.inf, None))
        if time.monotonic() - when > GLANCE_S:
            when, value = self._glances[name] = (time.monotonic(), look())
        found: T = value
        return found

    def forget(self) -> None:
        """Look anew next time, since somebody changed what there is at once."""
        self._glances.clear()

    def link(self, request: Request, path: str) -> str:
        """An address to send to people."""
        root = self.base_url or f"{request.url.scheme}://{request.url.netloc}"
        return f"{root}{path}"


def site_of(request: Request) -> Site:
    """Of the application that was asked."""
    found: Site = request.app.state.site
    return found


@contextmanager
def visiting(
    request: Request, *, csrf: str | None = None, supervises: bool = False, reads: bool = False, choosing: bool = False
) -> Iterator[tuple[Session, people.Visitor]]:
    """A transaction, and whose browser asks.

    Args:
        request: what came.
        csrf: what a form brought; None: the request changes nothing.
        supervises: only for supervisors.
        reads: nothing is written, so that nobody waits for it.
        choosing: a task is chosen, see `database.transaction`.

    Raises:
        NotInvited: a stranger, a form that we did not give to this browser, or no supervisor.
    """
    site = site_of(request)
    with transaction(site.engine, reads=reads, choosing=choosing) as session:
        visit = people.visit_of(session, request.cookies.get(site.cookie))
        if visit is None:
            raise NotInvited("This page is by invitation. Please open the link that you were sent.")
        if csrf is not None and not people.may_post(visit, csrf):
            raise NotInvited("This form is out of date. Please go back to the page and try again.")
        if supervises and not visit.supervisor:
            raise NotInvited("This page is for supervisors.")
        if not reads:
            people.note_use(session, visit)
        yield session, visit


@cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("rlhf_dist.feedback", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def page(request: Request, name: str, values: dict[str, Any], *, status: int = 200) -> HTMLResponse:
    """A page of a template."""
    told = {"base": site_of(request).base, **values}
    return HTMLResponse(_pages().get_template(f"{name}.html.j2").render(told), status_code=status)


def message(request: Request, title: str, text: str, status: int) -> Response:
    """A page with nothing but some sentences."""
    return page(request, "message", {"title": title, "text": text}, status=status)


class Doors:
    """Before everything else: names under which the page answers, its path, how much a form may bring, and headers."""

    def __init__(self, app: ASGIApp, *, hosts: list[str] | None, base: str, threads: int) -> None:
        """Stand before an application.

        Args:
            app: what is behind.
            hosts: names under which the page may be asked for, which guards one on loopback against DNS rebinding; None: any.
            base: path that the page lies under, with or without which a proxy may ask.
            threads: how many requests work on the database at once; the others wait in the order in which they came.
        """
        self._app, self._hosts, self._base, self._threads = app, hosts, base, threads
        self._limited = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._limited:
            anyio.to_thread.current_default_thread_limiter().total_tokens = self._threads
            self._limited = True
        if self._base and scope["path"].startswith(f"{self._base}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._base)}
        headers = dict(scope["headers"])
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self._app(scope, _bounded(receive), _with_headers(send))

    def _refusal(self, headers: dict[bytes, bytes]) -> Response | None:
        name = _name(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and name not in self._hosts:
            known = ", ".join(dict.fromkeys(self._hosts))
            told = f"This page answers under {known} only, not under {name or 'no name'}. Its --base-url opens other names."
            return Response(told, status_code=400, media_type="text/plain")
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > LARGEST_BODY:
            return Response(f"This is more than {LARGEST_BODY:,} bytes.", status_code=413, media_type="text/plain")
        return None


def _name(host: str) -> str:
    """Of a Host header, without its port."""
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return bare.lower()


def _bounded(receive: Receive) -> Receive:
    """What comes in pieces without having told its size ends where it is too long."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        told = await receive()
        taken += len(told.get("body", b""))
        if taken > LARGEST_BODY:
            raise HTTPException(413, f"This is more than {LARGEST_BODY:,} bytes.")
        return told

    return bounded


def _with_headers(send: Send) -> Send:
    async def sending(told: MutableMapping[str, Any]) -> None:
        if told["type"] == "http.response.start":
            known = {name for name, _ in told["headers"]}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known]
            told = {**told, "headers": [*told["headers"], *added]}
        await send(told)

    return sending
