"""What the tests of images share: a served registry, a connection that can be cut, and small images."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.images.client import Registry
from app.images.registry import create_registry
from app.images.tokens import ACTIONS, Action, Grants, Scope, TokenAuthority
from tests.support.waiting import eventually

KEY = bytes(range(32))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MAX = 64 * 1024 * 1024
#: The user that the served registry knows; the scopes are the place's.
USER = ("ann", "secret of ann")
_TLS = ssl.create_default_context()


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncGenerator[str, None]:
    """Serve an app on a loopback port of its own and yield its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    config.load()
    # The parts of `Server.serve` without its signal handlers and its ticking loop.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        # Like `Server.shutdown`, which sleeps 0.1 s whatever there is to wait for.
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await eventually(lambda: not server.server_state.connections and not server.server_state.tasks)
        for listener in server.servers:
            await listener.wait_closed()


@dataclass
class Place:
    """A registry on disk and on a port."""

    root: Path
    authority: TokenAuthority
    url: str = ""
    grants: tuple[Scope, ...] = (Scope("*", ACTIONS),)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    meddle: Callable[[AsgiScope, Receive, Send], Any] | None = None
    """Called before the registry; returns an awaitable when it has answered itself, else None."""

    async def authenticate(self, username: str, password: str) -> Grants | None:
        return Grants(username, self.grants) if (username, password) == USER else None

    def bearer(self, repository: str, *actions: Action) -> dict[str, str]:
        scope = Scope(repository, frozenset(actions) or ACTIONS)
        return {"Authorization": f"Bearer {self.authority.mint('test', [scope], timedelta(minutes=5)).value}"}

    def client(self, **options: Any) -> Registry:
        options = {"username": USER[0], "password": USER[1], **options}
        return client(self.url, **options)

    def http(self, repository: str, *actions: Action) -> httpx.AsyncClient:
        return plain_http(base_url=f"{self.url}/v2", headers=self.bearer(repository, *actions))

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.requests.append((scope["method"], scope["path"], headers))
        if self.meddle and (answered := self.meddle(scope, receive, send)):
            await answered
            return
        await self.app(scope, receive, send)

    app: ASGIApp = field(init=False)


def plain_http(**options: Any) -> httpx.AsyncClient:
    """Return an HTTP client; the certificates are read once, since that takes longer than most tests."""
    return httpx.AsyncClient(verify=_TLS, **options)


def client(url: str, **options: Any) -> Registry:
    """Return our client without waits between tries."""
    return Registry(url, **{"sleep": no_wait, "transport": httpx.AsyncHTTPTransport(verify=_TLS), **options})


async def no_wait(seconds: float) -> None:
    """Stand in for the sleep between tries."""
    await asyncio.sleep(0)


@asynccontextmanager
async def registry(root: Path, *, max_bytes: int = MAX, **options: Any) -> AsyncGenerator[Place, None]:
    """Serve a registry over ``root``."""
    place = Place(root, TokenAuthority([KEY]))
    inner = create_registry(
        root, place.authority, authenticate=place.authenticate, max_image_bytes=max_bytes, **options
    )
    place.app = Starlette(routes=[Mount("/v2", inner)])
    async with serving(place) as url:
        place.url = url
        yield place


async def answer(send: Send, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
    """Answer a request by hand."""
    raw = [(k.lower().encode(), v.encode()) for k, v in {"Content-Length": str(len(body)), **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Cutter:
    """A TCP relay that breaks connections: each entry of ``up`` or ``down`` is for one connection, in bytes."""

    target: str
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    cuts: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        url = httpx.URL(self.target)
        upstream_reader, upstream_writer = await asyncio.open_connection(url.host, url.port)
        up, down = self.up.pop(0) if self.up else None, self.down.pop(0) if self.down else None
        tasks = [
            asyncio.create_task(self._relay(reader, upstream_writer, up)),
            asyncio.create_task(self._relay(upstream_reader, writer, down)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for w in (writer, upstream_writer):
                w.close()
                with contextlib.suppress(OSError):
                    await w.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16384):
                writer.write(data if budget is None else data[:budget])
                await writer.drain()
                if budget is not None:
                    budget -= len(data)
                    if budget < 0:
                        self.cuts += 1
                        return


@asynccontextmanager
async def cutting(target: str, **options: Any) -> AsyncGenerator[Cutter, None]:
    """Put a ``Cutter`` in front of ``target``."""
    cutter = Cutter(target, **options)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(cutter.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    cutter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cutter
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def sha(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def noise(size: int, seed: int = 0) -> bytes:
    """Return ``size`` bytes that are the same each time and don't repeat."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def reader(data: bytes, piece: int = 64 * 1024) -> Callable[[int], AsyncGenerator[bytes, None]]:
    """Return a source of ``data`` for an upload."""

    async def read(offset: int) -> AsyncGenerator[bytes, None]:
        for at in range(offset, len(data), piece):
            yield data[at : at + piece]

    return read


async def collected(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([p async for p in pieces])


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha(data), "size": len(data), **more}


@dataclass(frozen=True)
class Image:
    """An image in memory."""

    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]
    media_type: str = MANIFEST

    @property
    def digest(self) -> str:
        return sha(self.manifest)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        return (self.config, *self.layers)


def image(
    content: bytes = b"agent", *, config: dict[str, Any] | None = None, top: dict[str, Any] | None = None, **more: Any
) -> Image:
    """Build a runnable image; ``config`` and ``top`` go over its config, ``more`` over its manifest."""
    layer = gzip.compress(content, mtime=0)
    body = {
        "os": "linux",
        "architecture": "amd64",
        "created": "1970-01-01T00:00:00Z",
        "config": {"User": "65532:65532", "Entrypoint": ["/app/agent"], "Labels": {"k": "v"}, **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha(content)]},
        **(top or {}),
    }
    raw = json.dumps(body).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, raw),
        "layers": [descriptor(LAYER, layer)],
        **more,
    }
    return Image(json.dumps(manifest).encode(), raw, (layer,))


async def push(client: Registry, repository: str, what: Image, tag: str | None = None) -> str:
    """Push an image by digest, or under a tag."""
    for blob in what.blobs:
        await client.upload_blob(repository, sha(blob), len(blob), reader(blob))
    return await client.put_manifest(repository, tag or what.digest, what.media_type, what.manifest)
