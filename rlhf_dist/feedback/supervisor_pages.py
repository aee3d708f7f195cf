"""The supervisors' pages: how it goes, single judgements and tasks, invitations, and taking data out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import exchange, inspection, judging, people
from rlhf_dist.feedback.database import Annotator
from rlhf_dist.feedback.facts import Tasks, compared
from rlhf_dist.feedback.inspection import KINDS_OF_TASKS, STATES, Filter
from rlhf_dist.feedback.supervision import WEIGHINGS, Overview, Version, Weighing, overview, version
from rlhf_dist.feedback.task_view import parts, sides_of
from rlhf_dist.feedback.verdicts import COMPARISONS, SKIP
from rlhf_dist.feedback.web import page, site_of, visiting

KINDS = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
routes = APIRouter(prefix="/supervise")
Csrf = Annotated[str, Form()]
Number = Annotated[int, Field(ge=0, lt=2**31)]
"""Of a row: what any database can be asked for."""
T = TypeVar("T")
_slow = anyio.CapacityLimiter(1)
"""Heavy work has a thread of its own, so that those who judge do not queue behind it."""


async def aside(work: Callable[..., T], *arguments: Any) -> T:
    """Let heavy work run beside what annotators ask for."""
    return await anyio.to_thread.run_sync(work, *arguments, limiter=_slow)


@routes.get("")
async def supervise(request: Request, weigh: str = "all") -> HTMLResponse:
    """How it goes."""
    return await aside(_supervise, request, weigh, None)


def _supervise(request: Request, weigh: str, link: tuple[str, str] | None) -> HTMLResponse:
    weighing = next((each for each in WEIGHINGS if each == weigh), None)
    if weighing is None:
        raise DataError(f"weigh is {weigh!r}; expected one of {', '.join(WEIGHINGS)}")
    with visiting(request, supervises=True, reads=True) as (session, visit):
        seen = request.app.state.seen.overview(session, weighing)
    told = {"visit": visit, "seen": seen, "weighings": WEIGHINGS, "link": link, "token": people.new_token()}
    return page(request, "supervise", told)


class Seen:
    """What was made of a store, as long as it holds."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._version: Version | None = None
        self._tasks: Tasks | None = None
        self._overviews: dict[str, Overview] = {}

    def overview(self, session: Session, weighing: Weighing) -> Overview:
        """The overview of what the store has now; tasks are read when there are others, judgements when one came or went."""
        now = version(session)
        if self._version is None or self._version.tasks != now.tasks:
            self._tasks = compared(session)
        if self._version != now:
            self._version, self._overviews = now, {}
        if weighing not in self._overviews:
            self._overviews[weighing] = overview(session, weighing, self._tasks)
        return self._overviews[weighing]


@routes.get("/judgements")
def judgements(
    request: Request,
    person: str = "",
    verdict: str = "",
    remarks: bool = False,
    state: str = "standing",
    before: Number | None = None,
) -> HTMLResponse:
    """Single judgements, filtered."""
    number = int(person) if person.isdecimal() and len(person) < 10 else None
    wanted = Filter(number, None, judging.cleaned(verdict), remarks, state, before)
    with visiting(request, supervises=True, reads=True) as (session, visit):
        names = session.query(Annotator.id, Annotator.name).order_by(Annotator.name).all()
        found = inspection.judgements(session, wanted)
        told = {
            "visit": visit,
            "found": found,
            "wanted": wanted,
            "names": names,
            "one": session.get(Annotator, number) if number is not None else None,
            "verdicts": [(each, inspection.WORDS[each]) for each in (*COMPARISONS, SKIP)],
            "states": STATES,
            "query": request.url.query,
            "more": found[-1].judgement.id if len(found) == inspection.PAGE else None,
        }
        return page(request, "judgements", told)


@routes.get("/tasks")
def tasks(request: Request, which: str = "all", after: Number | None = None) -> HTMLResponse:
    """Tasks, with who said what."""
    with visiting(request, supervises=True, reads=True) as (session, visit):
        found = inspection.tasks(session, which, after)
        more = found[-1].task.id if len(found) == inspection.PAGE else None
        told = {"visit": visit, "found": found, "which": which, "kinds": KINDS_OF_TASKS, "more": more}
        return page(request, "tasks", told)


@routes.get("/tasks/{number}")
def task(request: Request, number: Number, mode: str = "formatted") -> HTMLResponse:
    """One task, and all that was said to it."""
    with visiting(request, supervises=True, reads=True) as (session, visit):
        found, said = inspection.one_task(session, number)
        told = {"visit": visit, "task": found, "said": said, "sources": json.loads(found.sources), "mode": mode}
        return page(request, "one_task", {**told, "parts": parts(found, mode), "sides": sides_of(found, mode)})


@routes.post("/withdraw")
def withdraw(
    request: Request, csrf: Csrf, judgement: Annotated[Number, Form()], back: Annotated[str, Form()] = ""
) -> Response:
    """Let one judgement stand no more."""
    with visiting(request, csrf=csrf, supervises=True) as (session, visit):
        judging.withdraw(session, judgement, by=visit.annotator_id)
    site_of(request).forget()
    return RedirectResponse(_back(request, back), status_code=303)


@routes.post("/withdraw-all")
def withdraw_all(request: Request, csrf: Csrf, person: Annotated[Number, Form()]) -> Response:
    """Let nothing that somebody said stand any more."""
    with visiting(request, csrf=csrf, supervises=True) as (session, visit):
        judging.withdraw_all(session, person, by=visit.annotator_id)
    site_of(request).forget()
    return RedirectResponse(
        f"{site_of(request).base}/supervise/judgements?person={person}&state=withdrawn", status_code=303
    )


@routes.post("/sign-out")
def sign_out(request: Request, csrf: Csrf, person: Annotated[Number, Form()]) -> Response:
    """End somebody's visits and their link; what they said stands."""
    with visiting(request, csrf=csrf, supervises=True) as (session, _):
        people.sign_out(session, person)
    return RedirectResponse(f"{site_of(request).base}/supervise", status_code=303)


@routes.post("/invite")
def invite(
    request: Request,
    csrf: Csrf,
    name: Annotated[str, Form()],
    token: Annotated[str, Form()],
    replace: Annotated[bool, Form()] = False,
) -> HTMLResponse:
    """Make an invitation, and show its link; the form brings its token, so that sent twice it makes the same."""
    with visiting(request, csrf=csrf, supervises=True) as (session, _):
        people.invite(session, name, replace=replace, token=token)
    return _supervise(request, "all", (name.strip(), site_of(request).link(request, f"/join/{token}")))


@routes.get("/export.{suffix}")
async def export(suffix: str, request: Request, form: str = "raw") -> Response:
    """All judgements as a file."""
    return await aside(_export, suffix, request, form)


def _export(suffix: str, request: Request, form: str) -> Response:
    if suffix not in KINDS:
        raise DataError(f"export.{suffix} is not known; expected {' or '.join(KINDS)}")
    with visiting(request, supervises=True, reads=True) as (session, _):
        rows = exchange.exported(exchange.standing(session), form=form)
    named = {"content-disposition": f'attachment; filename="feedback.{suffix}"'}
    return Response(exchange.encoded(rows, suffix), media_type=KINDS[suffix], headers=named)


def _back(request: Request, query: str) -> str:
    """The list that somebody came from; only ever one of ours."""
    return f"{site_of(request).base}/supervise/judgements{'?' + query if query else ''}"
