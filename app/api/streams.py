"""What happens, as it happens: events of a project and of a build, and a build's log. By `Accept` a stream or a page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import StringConstraints
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import events
from app.api import build_logs, feeds, sse
from app.api.deps import AllRead, BuildsRead, Ctx, KeyHolder, Limit
from app.api.feeds import Feed
from app.api.hub import Hub, Streams
from app.api.lists import NextPage
from app.api.reasons import responses
from app.api.schemas import BuildEnd, EventOut, EventPage, LogLineOut, LogPage
from app.api.sse import EventStream, invalid_position
from app.builds import submit
from app.db import alone
from app.errors import invalid, not_found
from app.events import Position
from app.fields import Time
from app.models import Service

router = APIRouter(prefix="/v1")
P = TypeVar("P")

Kind = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,24}\.([a-z_]{1,24}|\*)$")]
POSITION, LINE_POSITION = r"[0-9]{1,18}-[0-9]{1,18}", r"[0-9]{1,9}\.[0-9]{1,18}(,[0-9]{1,9}\.[0-9]{1,18}){0,31}"
"""As described to callers; ``events`` and ``build_logs`` read them."""


def _place(words: str, pattern: str, part: Callable[..., Any] = Query) -> Any:
    return part(max_length=512, description=words, json_schema_extra={"pattern": f"^({pattern})$"})


_AFTER = "Go on after this: an `id`, or the `after` of a page"
_LAST = "The last `id` that was seen; wins over `after`."
_CURSOR = "`next_cursor` of the page before."
After = Annotated[str | None, _place(f"{_AFTER}; `now` skips what was.", f"now|{POSITION}")]
AfterEvent = Annotated[str | None, _place(f"{_AFTER}.", POSITION)]
AfterLine = Annotated[str | None, _place(f"{_AFTER}.", LINE_POSITION)]
LastEventId = Annotated[str | None, _place(_LAST, f"|{POSITION}", Header)]
LastLineId = Annotated[str | None, _place(_LAST, f"|{LINE_POSITION}", Header)]
EventCursor = Annotated[str | None, _place(_CURSOR, POSITION)]
LineCursor = Annotated[str | None, _place(_CURSOR, LINE_POSITION)]


@dataclass(frozen=True)
class Asked:
    """Who asks, and for what: a page, or a stream that ``follows``."""

    hub: Hub
    key_id: str
    follows: bool
    next_page: Callable[[str | None], str | None]

    def stream(self, blocks: sse.Blocks) -> EventStream:
        """Return the stream; Refusal (503) when this process has as many as it may."""
        self.hub.check_room()
        return EventStream(blocks, self.hub.write_seconds)


async def get_asked(hub: Streams, caller: KeyHolder, request: Request, next_page: NextPage) -> Asked:
    """Return what every route here has to know of its request."""
    return Asked(hub, caller.key_id, sse.wanted(request), next_page)


Asks = Annotated[Asked, Depends(get_asked)]

EVENT = """: slipway
id: 0-0
retry: 1000

data: {"id":"7421-99","kind":"build.queued","build_id":"bld_06f1qv0n2k3m4p5r6s7t8u9va0","run_id":null,"service_id":null,\
"release_id":null,"data":{},"at":"2026-01-02T03:04:05.678901Z"}
id: 7421-99

: keep-alive
id: 7430-0

"""
END = """event: end
data: {"build_id":"bld_06f1qv0n2k3m4p5r6s7t8u9va0","status":"succeeded"}
id: 7440-0

"""
LINE = """: slipway
id: 0.0
retry: 1000

data: {"at":"2026-01-02T03:04:05.678901Z","stream":"stdout","text":"go: downloading","run_id":"run_06f1qv0n2k3m4p5r6s7t8u9va0",\
"number":0}
id: 1.1

event: end
data: {"build_id":"bld_06f1qv0n2k3m4p5r6s7t8u9va0","status":"succeeded"}
id: 1.1

"""


@router.get(
    "/events",
    tags=["events"],
    response_model=EventPage,
    responses=responses(build_not_found=404, service_not_found=404, too_many_streams=503)
    | sse.described(EventOut, None, EVENT),
)
async def list_events(
    project: AllRead,
    context: Ctx,
    asked: Asks,
    limit: Limit = 100,
    cursor: EventCursor = None,
    after: After = None,
    last_event_id: LastEventId = None,
    kind: Annotated[
        list[Kind] | None, Query(description="Such as `build.failed`, or `build.*`.", max_length=16)
    ] = None,
    build: Annotated[str | None, Query(max_length=40)] = None,
    service: Annotated[str | None, Query(max_length=40, description="A service's name.")] = None,
    since: Annotated[Time | None, Query(description="Only what happened at this time or later.")] = None,
    until: Annotated[Time | None, Query(description="Only what happened before this time; of pages only.")] = None,
) -> EventPage | Response:
    """List what happened in the project, oldest first; with `Accept: text/event-stream` follow it from there on."""
    if asked.follows and until is not None:
        raise invalid("until", "a stream has no end; leave this out, or ask for pages")
    async with alone(context.sessions) as session:
        ids = None
        if service is not None:
            named = select(Service.id).where(Service.project_id == project.id, Service.name == service)
            ids = tuple((await session.execute(named)).scalars())
            if not ids:
                raise not_found("service", service)
        if build is not None:
            await submit.find(session, project, build)
        feed = Feed(project.id, build, ids, tuple(kind or ()), since, until)
        if not last_event_id and after == "now":
            start = await events.horizon(session)
        else:
            start = _start((last_event_id or None, after, cursor), events.START, events.parse)
        if since is not None:
            start = max(start, await events.begin(session, since))
        return await _events(asked, session, feed, start, limit)


@router.get(
    "/builds/{build_id}/events",
    tags=["builds"],
    response_model=EventPage,
    responses=responses(build_not_found=404, too_many_streams=503) | sse.described(EventOut, BuildEnd, EVENT + END),
)
async def list_build_events(
    build_id: str,
    project: BuildsRead,
    context: Ctx,
    asked: Asks,
    limit: Limit = 100,
    cursor: EventCursor = None,
    after: AfterEvent = None,
    last_event_id: LastEventId = None,
) -> EventPage | Response:
    """List what happened to a build, oldest first; with `Accept: text/event-stream` follow it until it has ended."""
    start = _start((last_event_id or None, after, cursor), events.START, events.parse)
    async with alone(context.sessions) as session:
        build = await submit.find(session, project, build_id)
        return await _events(asked, session, Feed(project.id, build.id, ends=True), start, limit)


@router.get(
    "/builds/{build_id}/logs",
    tags=["builds"],
    response_model=LogPage,
    responses=responses(build_not_found=404, too_many_streams=503) | sse.described(LogLineOut, BuildEnd, LINE),
)
async def list_build_logs(
    build_id: str,
    project: BuildsRead,
    context: Ctx,
    asked: Asks,
    request: Request,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    cursor: LineCursor = None,
    after: AfterLine = None,
    since: Annotated[Time | None, Query(description="Only lines from this time on.")] = None,
    last_event_id: LastLineId = None,
) -> LogPage | Response:
    """List the build's log lines, oldest first; plain text with `Accept: text/plain`, and with `text/event-stream` they
    follow until the build has ended.
    """
    start = _start((last_event_id or None, after, cursor), build_logs.Seen(), build_logs.parse)
    async with context.sessions() as session:
        build = await submit.find(session, project, build_id)
        if asked.follows:
            return asked.stream(build_logs.stream(asked.hub, build.id, start, since, asked.key_id))
        page = await build_logs.page(session, build.id, start, limit, since)
    asked.next_page(page.next_cursor)
    if "text/plain" in request.headers.get("accept", ""):
        return PlainTextResponse("".join(f"{line.text}\n" for line in page.items), headers=response.headers)
    return page


async def _events(asked: Asked, session: AsyncSession, feed: Feed, start: Position, limit: int) -> EventPage | Response:
    if asked.follows:
        return asked.stream(feeds.stream(asked.hub, feed, start, asked.key_id))
    page = await feeds.page(session, feed, start, limit)
    asked.next_page(page.next_cursor)
    return page


def _start(given: tuple[str | None, ...], first: P, parse: Callable[[str], P]) -> P:
    text = next((t for t in given if t is not None), None)
    if text is None:
        return first
    try:
        return parse(text)
    except ValueError:
        raise invalid_position(text) from None
