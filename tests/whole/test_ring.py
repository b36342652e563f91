"""A service goes round all platforms while it is called through the gateway by its stable name: no call fails, at any moment."""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.platforms.address import request_for
from app.settings import LocalSettings
from tests.e2e.programs import ECHO
from tests.support.agents import Toolbox
from tests.support.plane import Json, Plane, ground, leftovers, plane, platforms
from tests.support.waiting import eventually

Call = Callable[[httpx.AsyncClient], Awaitable[None]]
RING = ("local", "fly", "northflank", "koyeb", "railway")
KEEP_SECONDS = 1
DRAIN_SECONDS = 2.0
"""What began before the switch has so long to end; a stream of the caller's takes half of it."""
EVENTS, EVENT_MS = 20, 50
PAUSE_SECONDS = 0.02
#: Ends it at its start where this file is: on the stand-ins, which have no sandbox, and while the test wants it.
TROUBLE = {
    "trouble.go": """package main

import "os"

func init() {
	if _, err := os.Stat(os.Getenv("TROUBLE")); err == nil {
		os.Exit(3)
	}
}
"""
}


class Caller:
    """A client that never stops: GETs, POSTs and streams on connections of their own. ``failures`` is what must stay empty."""

    def __init__(self, url: str) -> None:
        self.base, self._headers = request_for(url)
        self.failures: list[str] = []
        self.done = Counter[str]()
        self.release = ""
        """Which release answered the last GET to end."""

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call while the block runs; what is under way at its end is waited for."""
        stop = asyncio.Event()
        async with (
            httpx.AsyncClient(base_url=self.base, headers=self._headers, timeout=20, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            for act in (self._get, self._get, self._post, self._stream):
                group.create_task(self._again(act.__name__, act, http, stop))
            try:
                yield
            finally:
                stop.set()

    async def _again(self, name: str, act: Call, http: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                await act(http)
            except (httpx.HTTPError, AssertionError, ValueError) as e:
                self.failures.append(f"{name} after {time.monotonic() - began:.2f} s: {type(e).__name__} {e}")
            self.done[name] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _get(self, http: httpx.AsyncClient) -> None:
        answer = await http.get("/")
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        self.release = answer.json()["release"]

    async def _post(self, http: httpx.AsyncClient) -> None:
        sent = f"number {self.done['_post']}"
        answer = await http.post("/", content=sent)
        assert (answer.status_code, answer.text) == (200, sent), f"{answer.status_code} {answer.text}"

    async def _stream(self, http: httpx.AsyncClient) -> None:
        async with http.stream("GET", f"/events?count={EVENTS}&ms={EVENT_MS}") as answer:
            assert answer.status_code == 200, answer.status_code
            seen = [line async for line in answer.aiter_lines() if line.startswith("data:")]
        assert len(seen) == EVENTS, f"{len(seen)} events"


@pytest.mark.parametrize("stride", [1, *(pytest.param(n, marks=pytest.mark.volume) for n in (2, 3, 4))])
async def test_no_call_fails_while_it_moves(toolbox: Toolbox, database_url: str, tmp_path: Path, stride: int) -> None:
    """Each stride through the ring has five pairs of its own, and all four have every pair in every direction.

    Its first stop does not take it at once: there it can't start.
    """
    home = toolbox.home(tmp_path / "home", seeded=True)
    at = ground(database_url, home, toolbox, local=LocalSettings(), drain_seconds=DRAIN_SECONDS)
    trouble = tmp_path / "trouble"
    async with platforms(at, tmp_path) as stand_ins, plane(at, stand_ins) as here:
        build = await here.build(ECHO | TROUBLE, "local", "echo", stable_name=True, env={"TROUBLE": str(trouble)})
        caller = Caller(build["url"])
        stops = [RING[stride * n % len(RING)] for n in range(1, len(RING) + 1)]
        async with caller.calling():
            await _broken(here, caller, stops[0], trouble)
            for target in stops:
                await _moved(here, caller, target)
            for left in stops[:-1]:
                await eventually(functools.partial(_left, here, left), 20)
        assert caller.failures == []
        await here.deleted("echo")
        await eventually(lambda: _left(here, "local"), 20)


async def _broken(here: Plane, caller: Caller, target: str, trouble: Path) -> None:
    """Migrate to where it can't start: it stays where it is, and nothing stays there."""
    before = await here.service("echo")
    trouble.touch()  # noqa: ASYNC240 - an empty file
    release = await _migrate(here, target)
    failed = await here.failed("echo", release["id"])
    assert failed["reason"] == "crashed_at_start", failed
    trouble.unlink()  # noqa: ASYNC240
    after = await here.service("echo")
    assert (after["platform"], after["live_release"]) == (before["platform"], before["live_release"])
    await eventually(lambda: _left(here, target), 20)
    assert caller.failures == []


async def _moved(here: Plane, caller: Caller, target: str) -> None:
    release = await _migrate(here, target)
    assert not release["url_changes"]
    service = await here.live("echo", release["id"])
    assert (service["platform"], service["url"]) == (target, release["old_url"])
    name = f"slp-{here.context.installation}-{release['id'].replace('_', '-')}"
    await eventually(lambda: caller.release == name, 5)
    calls = caller.done.copy()
    await eventually(lambda: all(caller.done[kind] > calls[kind] for kind in calls), 10)
    assert caller.failures == [], f"to {target}"


async def _migrate(here: Plane, target: str) -> Json:
    body = {"platform": target, "keep_seconds": KEEP_SECONDS, "strict": False}
    return await here.call("POST", "/v1/services/echo/migrate", json=body)


async def _left(here: Plane, name: str) -> bool:
    """Tell that a platform has nothing of the service any more; AssertionError saying what it has."""
    there = leftovers(here.stand_ins[name]) if name != "local" else await _of_local(here)
    assert there == [], f"on {name}: {there}, {await _rows(here)}"
    return True


async def _of_local(here: Plane) -> list[str]:
    services = here.context.catalog.held["local"].services
    assert services is not None
    return [found.ref.name for found in (await services.list_ours(here.context.installation)).items]


async def _rows(here: Plane) -> list[dict[str, object]]:
    """Return what the rows say of it, for whoever reads why it went wrong."""
    columns = "platform, status, keep_until, leaving_at, retired_at, next_check_at, clock_timestamp()"
    async with here.context.sessions() as session:
        return [dict(row) for row in (await session.execute(text(f"select {columns} from release"))).mappings()]
