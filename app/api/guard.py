"""What every request must keep to before any route sees it: a body of bounded size, and no NUL in its address."""

from collections.abc import Mapping

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import respond
from app.errors import Refusal, invalid

UNBOUNDED = ("/v1/sources", "/v2/")
"""These stream their bodies and have limits of their own."""


class Guard:
    """Middleware. ``limit`` in bytes holds for every body that is read as a whole; over it the answer is 413.

    ``others`` are paths with limits of their own.
    """

    def __init__(self, app: ASGIApp, *, limit: int, others: Mapping[str, int]) -> None:
        self._app, self._limit, self._others = app, limit, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := _with_nul(scope)) is not None:
            await respond(Request(scope), refusal)(scope, receive, send)
            return
        if not scope["path"].startswith(UNBOUNDED):
            receive = self._bounded(receive, self._others.get(scope["path"].rstrip("/"), self._limit))
        await self._app(scope, receive, send)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes")
            return message

        return bounded


def _with_nul(scope: Scope) -> Refusal | None:
    """Return why not, when there is a NUL in the address: PostgreSQL can't even compare with it."""
    if "\x00" in scope["path"]:
        return Refusal(404, "route_not_found", "There is nothing whose name has a NUL in it.")
    if b"%00" in scope["query_string"]:
        for name, value in QueryParams(scope["query_string"]).multi_items():
            if "\x00" in name + value:
                return invalid(name[:100], "must not contain NUL characters")
    return None
