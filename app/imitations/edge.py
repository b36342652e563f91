"""The platform's own proxy: takes requests by host name and sends each to a running program, waking one first where need be.

Services of an imitation have addresses such as ``http://<app>.localhost:<port>``. Not every resolver knows that such names are
this machine, so a client may as well connect to 127.0.0.1 and send the name as ``Host``.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

#: What belongs to one hop (RFC 9110, 7.6.1) and may not be passed on.
_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"})

Pick = Callable[[str], Awaitable[str | None]]
"""Takes the first label of a host name; returns the base URL of a program that listens, None when there is none."""


class Edge:
    """The ASGI app; ``pick`` decides where a request goes. Close it with ``aclose``."""

    def __init__(self, pick: Pick, *, timeout: float = 30.0) -> None:
        self._pick = pick
        self._http = httpx.AsyncClient(timeout=timeout, trust_env=False, verify=False)  # noqa: S501 - plain http only
        self.requests: list[tuple[str, str]] = []
        self.busy: Counter[str] = Counter()
        """Requests under way by label: while there are any, a service is not idle."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        request = Request(scope, receive)
        label = request.headers.get("host", "").partition(":")[0].partition(".")[0]
        self.requests.append((label, request.url.path))
        self.busy[label] += 1
        try:
            response = await self._forward(request, label)
            await response(scope, receive, send)
        finally:
            self.busy[label] -= 1

    async def _forward(self, request: Request, label: str) -> Response:
        base = await self._pick(label)
        if base is None:
            return PlainTextResponse("no program to send this to", 503)
        query = request.scope["query_string"].decode()
        url = f"{base}{request.url.path}" + (f"?{query}" if query else "")
        headers = [(k, v) for k, v in request.headers.items() if k not in _HOP]
        try:
            outgoing = self._http.build_request(request.method, url, headers=headers, content=await request.body())
            answer = await self._http.send(outgoing, stream=True)
        except httpx.HTTPError as e:
            return PlainTextResponse(f"the program does not answer: {type(e).__name__}", 502)
        kept = {k: v for k, v in answer.headers.items() if k not in _HOP}
        return StreamingResponse(_raw(answer), answer.status_code, kept, background=BackgroundTask(answer.aclose))


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for piece in answer.aiter_raw():
        yield piece
