"""An outside registry as a process: OCI distribution behind a Basic password, without a token service.

    python -m tests.shipping.registry FOLDER USER PASSWORD

Prints its URL when it is up. That is how docker-compose.yml has its registry (htpasswd): it can't give a builder a token of
small scope.
"""

import asyncio
import base64
import re
import secrets
import socket
import sys
from datetime import timedelta
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.images import tokens
from app.images.registry import create_registry

LIFE = timedelta(minutes=5)


class Basic:
    """Lets only the one user in, who may do everything."""

    def __init__(self, inner: ASGIApp, authority: tokens.TokenAuthority, user: str, password: str) -> None:
        self._inner, self._authority = inner, authority
        self._wanted = b"Basic " + base64.b64encode(f"{user}:{password}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not secrets.compare_digest(given, self._wanted):
            refusal = Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="outside"'})
            await refusal(scope, receive, send)
            return
        found = re.match(r"/v2/(.+?)/(?:blobs|manifests|tags|referrers)/", scope["path"])
        granted = [tokens.Scope(found[1], tokens.ACTIONS)] if found else []
        bearer = f"Bearer {self._authority.mint('outside', granted, LIFE).value}".encode()
        headers = [(k, v) for k, v in scope["headers"] if k != b"authorization"]
        await self._inner({**scope, "headers": [*headers, (b"authorization", bearer)]}, receive, send)


class Announced(uvicorn.Server):
    """Prints its URL when it is up."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()


async def nobody(username: str, password: str) -> tokens.Grants | None:
    """Know nobody: there is no token service here."""
    return None


async def main(folder: Path, user: str, password: str) -> None:
    """Serve until SIGTERM."""
    authority = tokens.TokenAuthority([secrets.token_bytes(32)])
    inner = create_registry(folder, authority, authenticate=nobody, max_image_bytes=1 << 30)
    app = Basic(Starlette(routes=[Mount("/v2", inner)]), authority, user, password)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    await Announced(config).serve()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
