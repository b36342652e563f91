"""A real socket for an ASGI app, inside a process that has other things to do: no signal handlers, no log set-up."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

END_SECONDS = 5.0
_POLL_SECONDS = 0.005


@asynccontextmanager
async def serving(
    app: ASGIApp, *, port: int = 0, http: type[asyncio.Protocol] | Literal["auto"] = "auto"
) -> AsyncGenerator[str, None]:
    """Serve ``app`` on a port of 127.0.0.1, a free one by default, and give its URL; requests under way are ended at the end.

    ``http`` is a protocol of one's own, for a server that breaks it.
    """
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http=http, log_config=None, lifespan="off", access_log=False
    )
    config.load()
    # The parts of `Server.serve` without its signal handlers and its ticking loop.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        for task in list(server.server_state.tasks):
            task.cancel()
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        async with asyncio.timeout(END_SECONDS):
            while server.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(_POLL_SECONDS)
        for listener in server.servers:
            await listener.wait_closed()
