"""Reads server-sent events, and serves an app on a real socket to read them from."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI

from app.ground import bind
from app.serving import Up, api_part

SECONDS = 15.0


@dataclass
class Block:
    """One block as it came."""

    id: str | None = None
    event: str | None = None
    data: Any = None
    comments: list[str] = field(default_factory=list)
    retry: int | None = None


@dataclass
class Stream:
    """An open stream; ``last`` is what a browser would send as ``Last-Event-ID``."""

    answer: httpx.Response
    last: str | None = None

    def __post_init__(self) -> None:
        self._lines = self.answer.aiter_lines()

    async def block(self) -> Block:
        """Return the next block, whatever it is; StopAsyncIteration at the end of the stream."""
        block = Block()
        async with asyncio.timeout(SECONDS):
            while line := await anext(self._lines):
                name, _, value = line.partition(": ")
                match name:
                    case "":
                        block.comments.append(value)
                    case "data":
                        block.data = json.loads(value)
                    case "retry":
                        block.retry = int(value)
                    case "id" | "event":
                        setattr(block, name, value)
                    case _:
                        raise AssertionError(f"there is no field {name!r}")
        self.last = block.id or self.last
        return block

    async def data(self) -> Block:
        """Return the next block that says something."""
        while (block := await self.block()).data is None:
            pass
        return block

    async def rest(self) -> list[Block]:
        """Return what comes until the stream ends, without mere signs of life."""
        found = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                found.append(await self.data())
        return found


@dataclass
class Served:
    """An app that answers on a real port."""

    url: str
    key: str
    task: "asyncio.Task[None]"
    http: httpx.AsyncClient

    @contextlib.asynccontextmanager
    async def stream(self, path: str, last: str | None = None, **query: Any) -> AsyncIterator[Stream]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        given = {name: value for name, value in query.items() if value is not None}
        async with self.http.stream("GET", path, headers=headers, params=given) as answer:
            if answer.status_code != 200:
                await answer.aread()
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield Stream(answer, last)


def ids(blocks: Iterable[Block]) -> list[str]:
    return [b.data["id"] for b in blocks if b.event is None]


@contextlib.asynccontextmanager
async def served(app: FastAPI, key: str, port: int = 0) -> AsyncIterator[Served]:
    """Serve an app as a process of ours does, for the length of the block; by default on a port that is free."""
    up = asyncio.Event()
    with bind("127.0.0.1", port, "PORT") as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(api_part(app, listener, Up(1, up.set)))
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, limits=limits, trust_env=False) as http:
            try:
                async with asyncio.timeout(SECONDS):
                    await up.wait()
                yield Served(url, key, task, http)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
