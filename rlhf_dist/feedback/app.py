"""The page on which people judge: server-rendered, keyboard first, over a real database. Each request is one transaction."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from rlhf_dist.errors import DataError, StorageError
from rlhf_dist.feedback import assignment, judging, people, supervisor_pages
from rlhf_dist.feedback.database import STORE, Setting, transaction
from rlhf_dist.feedback.guide import kept_guide
from rlhf_dist.feedback.judging import Form
from rlhf_dist.feedback.task_view import MODES, asked_of, view_of
from rlhf_dist.feedback.web import FOLDER, Doors, NotInvited, Site, message, page, site_of, visiting

log = logging.getLogger(__name__)
VIEW = "feedback-view"
"""The cookie with how somebody likes to see answers."""
ASSETS = {"style.css": "text/css", "keys.js": "text/javascript"}
YEAR = 31_536_000


def make_app(engine: Engine, *, hosts: list[str] | None = None, base_url: str | None = None) -> FastAPI:
    """The application on an open database.

    Args:
        engine: of the database.
        hosts: names under which the page may be asked for; None: any. Names guard a page on loopback against DNS rebinding.
        base_url: how people reach the page, for the links that it makes; its path is that of every link.
    """
    with transaction(engine, reads=True) as session:
        store = session.get_one(Setting, STORE).value
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = site = Site(engine, store, base_url)
    app.state.seen = supervisor_pages.Seen()
    # SQLite has one writer at a time; elsewhere a few, since Python runs one thread at a time and its turns are long.
    threads = 1 if engine.dialect.name == "sqlite" else 2
    app.add_middleware(Doors, hosts=hosts, base=site.base, threads=threads)
    app.add_exception_handler(NotInvited, _not_invited)
    app.add_exception_handler(DataError, _not_understood)
    app.add_exception_handler(StorageError, _not_stored)
    app.include_router(routes)
    app.include_router(supervisor_pages.routes)
    return app


routes = APIRouter()


async def form_of(request: Request) -> Form:
    """What a browser sent."""
    found = await request.form(max_files=0)
    texts = [(name, value) for name, value in found.multi_items() if isinstance(value, str)]
    names = dict.fromkeys(name for name, _ in texts)
    return Form(dict(texts), {name: [value for other, value in texts if other == name] for name in names})


Sent = Annotated[Form, Depends(form_of)]


@routes.get("/{name}.{suffix}")
def asset(name: str, suffix: str) -> Response:
    """How the page looks, and what keys do."""
    kind = ASSETS.get(f"{name}.{suffix}")
    if kind is None:
        raise DataError(f"{name}.{suffix} is no file of this page")
    return FileResponse(FOLDER / f"{name}.{suffix}", media_type=kind, headers={"cache-control": "max-age=3600"})


@routes.get("/join/{token}")
def join(token: str, request: Request) -> Response:
    """Take an invitation; a browser that is somebody else's is asked first."""
    site = site_of(request)
    key = request.cookies.get(site.cookie)
    with transaction(site.engine) as session:
        invited, visit = people.invited(session, token), people.visit_of(session, key)
        if invited is None:
            raise NotInvited("This invitation is not known, or a newer one took its place. Please ask for a new link.")
        if visit is not None and visit.annotator_id != invited.id:
            return page(request, "switch", {"visit": visit, "invited": invited, "token": token})
        return _entered(request, people.enter(session, invited, key), supervisor=invited.supervisor)


@routes.post("/join/{token}")
def switch(token: str, request: Request, form: Sent) -> Response:
    """Become somebody else in this browser."""
    with visiting(request, csrf=form.values.get("csrf", "")) as (session, _):
        invited = people.invited(session, token)
        if invited is None:
            raise NotInvited("This invitation is not known, or a newer one took its place. Please ask for a new link.")
        return _entered(request, people.enter(session, invited, None), supervisor=invited.supervisor)


def _entered(request: Request, key: str, *, supervisor: bool) -> Response:
    site = site_of(request)
    response = RedirectResponse(f"{site.base}/supervise" if supervisor else f"{site.base}/", status_code=303)
    secure = request.url.scheme == "https" or (site.base_url or "").startswith("https:")
    # Lax and not strict: the link is opened from a mail, and the page that it leads to must see the cookie.
    age = int(people.LONGEST_VISIT.total_seconds())
    response.set_cookie(site.cookie, key, age, path=f"{site.base}/", secure=secure, httponly=True, samesite="lax")
    return response


@routes.post("/leave")
def leave(request: Request, form: Sent) -> Response:
    """Sign out; what was before their eyes goes back to the others."""
    with visiting(request, csrf=form.values.get("csrf", "")) as (session, visit):
        assignment.let_go(session, visit.annotator_id)
        session.delete(visit)
    told = "You are signed out. Everything that you sent is stored. Your link brings you back."
    response = message(request, "Goodbye", told, 200)
    response.delete_cookie(site_of(request).cookie, path=f"{site_of(request).base}/")
    return response


@routes.get("/")
def next_page(request: Request, view: str = "") -> HTMLResponse:
    """The next task, or that all is done."""
    mode = next((each for each in (view, request.cookies.get(VIEW)) if each in MODES), MODES[0])
    site = site_of(request)
    with visiting(request, lasting=False) as (session, visit):
        me = visit.annotator_id
        there = site.glance("there", lambda: assignment.what_is_there(session))
        pace = site.glance(f"pace of {me}", lambda: assignment.pace(session, me))
        task, mine = assignment.next_task(session, me, there)
        guide = site.glance("guide", lambda: kept_guide(session))
        if task is None:
            mine = assignment.progress(session, me, assignment.what_is_there(session))
    told = {"visit": visit, "progress": mine, "pace": pace}
    if task is None:
        return page(request, "done", told)
    response = page(request, "task", {**told, **view_of(task, me, guide, mode)})
    if view in MODES:
        response.set_cookie(VIEW, view, YEAR, path=f"{site_of(request).base}/", httponly=True, samesite="lax")
    return response


@routes.post("/judge")
def take(request: Request, form: Sent) -> Response:
    """Take a judgement; one that stands already is left as it is."""
    site = site_of(request)
    stands_already = suppress(IntegrityError)
    with stands_already, visiting(request, csrf=form.values.get("csrf", "")) as (session, visit):
        number = form.values.get("task", "")
        known = number.isdecimal() and len(number) < 10
        task = assignment.task_of(session, int(number)) if known else None
        if task is None:
            raise DataError(f"there is no task {number!r}")
        asked = asked_of(task, site.glance("guide", lambda: kept_guide(session)))
        judging.record(session, task, visit.annotator_id, form, asked)
    return RedirectResponse(f"{site.base}/", status_code=303)


@routes.post("/undo")
def take_back(request: Request, form: Sent) -> Response:
    """Withdraw a judgement; its task comes next."""
    with visiting(request, csrf=form.values.get("csrf", "")) as (session, visit):
        number = form.values.get("judgement", "")
        if number.isdecimal() and len(number) < 10:
            judging.undo(session, visit.annotator_id, int(number))
    return RedirectResponse(f"{site_of(request).base}/", status_code=303)


@routes.post("/again")
def skipped_again(request: Request, form: Sent) -> Response:
    """What somebody skipped is shown to them once more."""
    with visiting(request, csrf=form.values.get("csrf", "")) as (session, visit):
        assignment.ask_again(session, visit.annotator_id)
    return RedirectResponse(f"{site_of(request).base}/", status_code=303)


def _not_invited(request: Request, error: Exception) -> Response:
    return message(request, "Not invited", str(error), 403)


def _not_stored(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    text = "Nothing was stored, because the page's database takes nothing at the moment. Please go back, keep what you wrote, "
    return message(request, "Not stored", f"{text}and tell your supervisor.", 503)


def _not_understood(request: Request, error: Exception) -> Response:
    return message(request, "Not taken", f"Nothing was stored: {error}.", 422)
