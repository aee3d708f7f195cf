"""The feedback page: server-rendered, keyboard first, over a real database. Each request is one transaction."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rlhf_dist.errors import DataError, StorageError
from rlhf_dist.feedback import assignment, exchange, people
from rlhf_dist.feedback.database import Judgement, Task, Visit, transaction
from rlhf_dist.feedback.differences import differences
from rlhf_dist.feedback.supervision import everything, overview

log = logging.getLogger(__name__)
COOKIE = "feedback"
COOKIE_DAYS = 90
FOLDER = Path(__file__).parent / "page"
HEADERS = {
    # Answers are other people's text and may hold anything: nothing but our own two files may run or be loaded.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
HINTS = {
    "comparison": "Which answer is better?",
    "score": "How good is this answer?",
    "comment": "What do you think of this answer?",
}
KINDS = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}


class NotInvited(Exception):
    """A browser without an invitation, or a form that we did not give to it."""


def make_app(engine: Engine, *, hosts: list[str] | None = None) -> FastAPI:
    """The application on an open database.

    Args:
        engine: of the database.
        hosts: names under which the page may be asked for; None: any. Names guard a page on loopback against DNS rebinding.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine = engine
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.middleware("http")(_guarded)
    app.add_exception_handler(NotInvited, _not_invited)
    app.add_exception_handler(DataError, _not_understood)
    app.add_exception_handler(StorageError, _not_stored)
    app.include_router(routes)
    return app


routes = APIRouter()


@contextmanager
def visiting(request: Request, *, csrf: str | None = None, supervises: bool = False) -> Iterator[tuple[Session, Visit]]:
    """A transaction, and whose browser asks.

    Args:
        request: what came.
        csrf: what a form brought; None: the request changes nothing.
        supervises: only for supervisors.

    Raises:
        NotInvited: a stranger, a form that we did not give to this browser, or no supervisor.
    """
    with transaction(request.app.state.engine) as session:
        visit = people.visit_of(session, request.cookies.get(COOKIE))
        if visit is None:
            raise NotInvited("This page is by invitation. Please open the link that you were sent.")
        if csrf is not None and not people.may_post(visit, csrf):
            raise NotInvited("This form is out of date. Please go back to the page and try again.")
        if supervises and not visit.annotator.supervisor:
            raise NotInvited("This page is for supervisors.")
        yield session, visit


@routes.get("/style.css")
def style() -> FileResponse:
    """How it looks."""
    return FileResponse(FOLDER / "style.css", headers={"Cache-Control": "max-age=3600"})


@routes.get("/keys.js")
def keys() -> FileResponse:
    """What keys do."""
    return FileResponse(FOLDER / "keys.js", media_type="text/javascript", headers={"Cache-Control": "max-age=3600"})


@routes.get("/join/{token}")
def join(token: str, request: Request) -> Response:
    """Take an invitation."""
    with transaction(request.app.state.engine) as session:
        entered = people.enter(session, token, request.cookies.get(COOKIE))
    if entered is None:
        raise NotInvited("This invitation is not known, or a newer one took its place. Please ask for a new link.")
    annotator, key = entered
    response = RedirectResponse("/supervise" if annotator.supervisor else "/", status_code=303)
    secure = request.url.scheme == "https"
    # Lax and not strict: the link is opened from a mail, and the page that it leads to must see the cookie.
    response.set_cookie(COOKIE, key, max_age=COOKIE_DAYS * 86_400, httponly=True, samesite="lax", secure=secure)
    return response


@routes.get("/")
def next_page(request: Request) -> HTMLResponse:
    """The next task, or that all is done."""
    with visiting(request) as (session, visit):
        me = visit.annotator_id
        task = assignment.next_task(session, me)
        shared = {
            "visit": visit,
            "progress": assignment.progress(session, me),
            "newest": assignment.newest(session, me),
        }
    if task is None:
        return _page("done", shared)
    shown = _sides(task, flipped=assignment.is_flipped(task.id, me))
    return _page(
        "task", {**shared, "task": task, "shown": shown, "hint": HINTS[task.kind], "scores": assignment.SCORES}
    )


@routes.post("/judge")
def take(
    request: Request,
    csrf: Annotated[str, Form()],
    task: Annotated[int, Form()],
    verdict: Annotated[str, Form()],
    comment: Annotated[str, Form()] = "",
) -> Response:
    """Take a judgement; one that stands already is left as it is."""
    with visiting(request, csrf=csrf) as (session, visit):
        found = session.get(Task, task)
        if found is None:
            raise DataError(f"there is no task {task}")
        assignment.record(session, found, visit.annotator_id, verdict, comment)
    return RedirectResponse("/", status_code=303)


@routes.post("/undo")
def take_back(request: Request, csrf: Annotated[str, Form()], judgement: Annotated[int, Form()]) -> Response:
    """Withdraw a judgement; its task comes next."""
    with visiting(request, csrf=csrf) as (session, visit):
        assignment.undo(session, visit.annotator_id, judgement)
    return RedirectResponse("/", status_code=303)


@routes.get("/supervise")
def supervise(request: Request) -> HTMLResponse:
    """How it goes."""
    with visiting(request, supervises=True) as (session, visit):
        found = everything(session)
    return _page("supervise", {"visit": visit, "seen": overview(found), "link": None})


@routes.post("/supervise/invite")
def invite(
    request: Request,
    csrf: Annotated[str, Form()],
    name: Annotated[str, Form()],
    replace: Annotated[bool, Form()] = False,
) -> HTMLResponse:
    """Make an invitation, and show its link this once."""
    with visiting(request, csrf=csrf, supervises=True) as (session, visit):
        token = people.invite(session, name, replace=replace)
        session.flush()
        found = everything(session)
    link = str(request.url_for("join", token=token))
    return _page("supervise", {"visit": visit, "seen": overview(found), "link": (name, link)})


@routes.get("/supervise/export.{suffix}")
def export(suffix: str, request: Request, form: str = "raw") -> Response:
    """All judgements as a file."""
    if suffix not in KINDS:
        raise DataError(f"export.{suffix} is not known; expected {' or '.join(KINDS)}")
    with visiting(request, supervises=True) as (session, _):
        rows = exchange.exported(session.scalars(select(Judgement).order_by(Judgement.id)), form=form)
    named = {"Content-Disposition": f'attachment; filename="feedback.{suffix}"'}
    return Response(exchange.encoded(rows, suffix), media_type=KINDS[suffix], headers=named)


def _sides(task: Task, *, flipped: bool) -> list[Any]:
    """Each answer in pieces, as this annotator sees them from left to right."""
    if task.answer_b is None:
        return [[(task.answer_a.strip(), False)]]
    first, second = (task.answer_b, task.answer_a) if flipped else (task.answer_a, task.answer_b)
    return [*differences(first.strip(), second.strip())]


@cache
def _pages() -> Environment:
    return Environment(loader=PackageLoader("rlhf_dist.feedback", "page"), autoescape=True)


def _page(name: str, values: dict[str, Any], *, status: int = 200) -> HTMLResponse:
    return HTMLResponse(_pages().get_template(f"{name}.html.j2").render(values), status_code=status)


async def _guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _not_invited(_: Request, error: Exception) -> Response:
    return _page("message", {"title": "Not invited", "text": str(error)}, status=403)


def _not_stored(_: Request, error: Exception) -> Response:
    log.error("%s", error)
    text = "Nothing was stored, because the page's database takes nothing at the moment. Please go back, keep what you wrote, "
    return _page("message", {"title": "Not stored", "text": f"{text}and tell your supervisor."}, status=503)


def _not_understood(_: Request, error: Exception) -> Response:
    return _page("message", {"title": "Not taken", "text": f"Nothing was stored: {error}."}, status=422)
