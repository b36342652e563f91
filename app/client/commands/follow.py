"""``slipway logs`` and ``slipway events``: what was said and what happened, and what comes."""

import itertools
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer

from app.client.command import Caller
from app.client.failed import Json
from app.client.options import moment, segment

LAST_LINES = 200
LOOK_LINES, LOOK_SECONDS = 1000, 1.0
"""A service's log is kept by its platform and has no stream: its last lines are looked at so often."""

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")]


def logs(
    caller: Caller,
    what: Annotated[
        str, typer.Argument(metavar="BUILD|SERVICE", help="A build's id, or a service's name.", callback=segment)
    ],
    *,
    follow: Follow = False,
    since: Annotated[str | None, typer.Option(help="Only later lines: 90s, 10m, 2h, 1d or a time.")] = None,
) -> None:
    """Print the log of a build, or the last lines of a service."""
    start = moment(since, "--since", ago=True).isoformat() if since else None
    found: Iterator[Json]
    if not what.startswith("bld_"):
        lines = _service_lines(caller, what, follow=follow)
        found = (line for line in lines if start is None or _at(line["at"]) >= _at(start))
    elif follow:
        blocks = caller.api.follow(f"/v1/builds/{what}/logs", {"since": start})
        found = (block.data for block in blocks if block.event is None)
    else:
        found = _pages(caller, f"/v1/builds/{what}/logs", {"since": start})
    for line in found:
        if caller.screen.as_json:
            caller.screen.line(line)
        else:
            caller.screen.text(line["text"], "dim" if line["stream"] in {"builder", "platform"} else "")


def events(
    caller: Caller,
    *,
    follow: Follow = False,
    kind: Annotated[list[str] | None, typer.Option(help="Such as build.failed, or build.*.")] = None,
    build: Annotated[str | None, typer.Option(help="Of one build.")] = None,
    service: Annotated[str | None, typer.Option(help="Of one service.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Go on after this event; else from the oldest, with -f from now.")
    ] = None,
) -> None:
    """Print what happened in the project, oldest first."""
    params = {"kind": kind, "build": build, "service": service, "after": after or ("now" if follow else None)}
    streamed = (block.data for block in caller.api.follow("/v1/events", params) if block.event is None)
    for event in streamed if follow else _pages(caller, "/v1/events", params):
        if caller.screen.as_json:
            caller.screen.line(event)
        else:
            about = event["build_id"] or event["service_id"] or event["release_id"] or ""
            said = event["data"].get("message") or event["data"].get("reason") or ""
            caller.screen.text(f"{event['at'][:19]}Z  {event['kind']:<20} {about} {said}".rstrip())


def _pages(caller: Caller, path: str, params: Json) -> Iterator[Json]:
    while True:
        page = caller.api.call("GET", path, params=params)
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        params = params | {"after": None, "cursor": page["next_cursor"]}


def _service_lines(caller: Caller, name: str, *, follow: bool) -> Iterator[Json]:
    path, params = f"/v1/services/{name}/logs", {"limit": LOOK_LINES if follow else LAST_LINES}
    seen = caller.api.call("GET", path, params=params)["items"]
    yield from seen[-LAST_LINES:]
    while follow:
        caller.api.sleep(LOOK_SECONDS)
        now = caller.api.call("GET", path, params=params)["items"]
        yield from now[known(seen, now) :]
        seen = now


def known(seen: list[Json], now: list[Json]) -> int:
    """Return how many lines of a look were in the one before: the longest end of that with which this begins.

    A last line that was half written then is not known: it comes again, whole.
    """
    # A platform that keeps no times gives all lines that of the last write: they say nothing of which line it is.
    dated = len({line["at"] for line in now}) > 1
    before, after = ([(x["stream"], x["at"] if dated else "", x["text"]) for x in look] for look in (seen, now))
    for skipped in itertools.count(max(0, len(seen) - len(now))):
        same = len(seen) - skipped
        if before[skipped:] == after[:same]:
            return same
        if before[skipped:-1] == after[: same - 1] and after[same - 1][-1].startswith(before[-1][-1]):
            return same - 1
    raise AssertionError


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)
