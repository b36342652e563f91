"""``/metrics`` on a port of its own, without a key: for whoever can reach that port, by default this machine alone."""

import asyncio
import contextlib
from collections.abc import Awaitable

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.context import Context
from app.gauges import CONTENT_TYPE, Page
from app.ground import bind

log = structlog.get_logger()


def part(context: Context) -> dict[str, Awaitable[None]]:
    """Return what a process runs beside its other parts for this; nothing unless ``SLIPWAY_METRICS_PORT`` is set."""
    return {} if context.settings.metrics_port is None else {"metrics": serve_metrics(context)}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leave the signals to the process's other parts."""
        yield


async def serve_metrics(context: Context, *, port: "asyncio.Future[int] | None" = None) -> None:
    """Serve until canceled; SetupError when the port is taken. ``port`` is told which one it is."""
    page = Page(context)

    async def show(_request: Request) -> Response:
        return Response(await page.render(), media_type=CONTENT_TYPE)

    app = Starlette(routes=[Route("/metrics", show)])
    with bind(context.settings.metrics_host, context.settings.metrics_port or 0, "METRICS_PORT") as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none")
        server = _Server(config)
        host, bound = listener.getsockname()[:2]
        log.info("metrics are served", host=host, port=bound)
        if port is not None:
            port.set_result(bound)
        try:
            await server.serve(sockets=[listener])
        except asyncio.CancelledError:
            server.should_exit = True
            await server.shutdown(sockets=[listener])
            raise
