"""``Idempotency-Key``: a POST that creates is carried out once, however often it is sent.

The answer is kept in the transaction of its effect, so there is never one without the other. While that transaction runs its row
is invisible, so an advisory lock tells that the same request is under way. Bodies are compared by a keyed HMAC: the
table says nothing about them. What is wrong with a request for good is kept too; 401, 403, 429 and 5xx are not.
"""

import hmac
import json
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json, to_json

from app import sql
from app.api.deps import Ctx, Db, KeyHolder, PlainDb
from app.context import Context
from app.errors import Refusal, invalid
from app.models import IdempotencyKey
from app.secrets import KeysError
from app.sql import Session

KEPT_SECONDS = 24 * 3600
FOR_GOOD = frozenset({400, 404, 405, 409, 410, 413, 415, 422})
"""Refusals that the same request gets again, so that they are kept."""
REPLAYED = {"Idempotency-Replayed": "true"}


_KEPT = """
    select *, created_at < now() - make_interval(secs => $3) as over from idempotency_key where project_id = $1 and key = $2
"""
_FORGET = "delete from idempotency_key where project_id = $1 and key = $2"
_KEEP = """
    insert into idempotency_key (project_id, key, key_id, fingerprint, status, media_type, location, body)
    values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing
"""


@dataclass
class Replay(Exception):
    """The request was carried out before: this is the answer that it got."""

    response: Response


@dataclass
class Once:
    """One request that has a key. ``hides`` names the fields of its answer that are shown only once."""

    context: Context
    project_id: str
    key: str
    what: str
    """Method and address; the body comes to it in ``enter``."""
    hides: tuple[str, ...] = ()
    _session: Session | None = field(default=None, init=False)
    _fingerprint: bytes = field(default=b"", init=False)

    async def enter(self, session: Session, body: bytes) -> None:
        """Begin, in the transaction of the request's effect; Replay when it was carried out before.

        Refusal: 409 while the same key is under way, 422 when the key came with another request.
        """
        number = struct.unpack("q", self._mac(b"lock", self.key.encode())[:8])[0]
        (mine,) = await sql.fetch(session, "select pg_try_advisory_xact_lock($1::bigint) as ours", number)
        if not mine["ours"]:
            detail = "A request with this Idempotency-Key is under way; ask again."
            raise Refusal(409, "idempotency_in_flight", detail, headers={"Retry-After": "1"})
        self._session, self._fingerprint = session, self._mac(self.what.encode(), body)
        # A statement of its own: it has to see what was committed before the lock was ours.
        row = await sql.fetch_one(session, _KEPT, self.project_id, self.key, float(KEPT_SECONDS))
        if row is None:
            return
        if row["over"]:
            await sql.fetch(session, _FORGET, self.project_id, self.key)
            return
        kept = sql.load(IdempotencyKey, row)
        try:
            same = hmac.compare_digest(kept.fingerprint, self._mac(self.what.encode(), body, kept.key_id))
        except KeysError:  # the secret key was taken away meanwhile: nobody can say what the first request was
            same = False
        if not same:
            raise invalid("Idempotency-Key", "was used with another request before", reason="idempotency_key_reused")
        raise Replay(_answer(kept))

    async def keep(self, response: Response) -> None:
        """Keep the answer, in the transaction of its effect."""
        if self._session is not None:
            await self._insert(self._session, response)

    async def keep_refusal(self, response: Response) -> None:
        """Keep a refusal; the transaction that it ended is rolled back already."""
        if self._session is None:
            return
        async with self.context.sessions.begin() as session:
            await self._insert(session, response)

    async def _insert(self, session: Session, response: Response) -> None:
        body: dict[str, Any] | None = from_json(bytes(response.body)) if response.body else None
        if body is not None and response.status_code < 300:
            body = {k: v for k, v in body.items() if k not in self.hides}
        headers = response.headers
        await sql.fetch(
            session, _KEEP, self.project_id, self.key, self.context.keyring.active, self._fingerprint, response.status_code,
            headers.get("content-type"), headers.get("location"), None if body is None else sql.as_json(body),
        )  # fmt: skip

    def _mac(self, about: bytes, data: bytes, key_id: str | None = None) -> bytes:
        text = b"\n".join((self.project_id.encode(), about, data))
        return hmac.digest(self.context.keyring.derive("idempotency", key_id), text, "sha256")


def _answer(kept: IdempotencyKey) -> Response:
    headers = dict(REPLAYED)
    if kept.location is not None:
        headers["Location"] = kept.location
    if kept.media_type is not None:
        headers["Content-Type"] = kept.media_type
    return Response(b"" if kept.body is None else to_json(kept.body), kept.status, headers)


Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours, best a UUID. For 24 hours the same request under it gets the first answer again.",
    ),
]


async def get_once(request: Request, context: Ctx, caller: KeyHolder, key: Key = None) -> Once | None:
    """Return the request's key, if it has one; the route or ``entered`` begins with it."""
    if key is None:
        return None
    what = f"{request.method} {request.url.path}?{request.url.query}"
    request.state.once = once = Once(context, caller.project.id, key, what)
    return once


async def _entered(request: Request, session: Session, once: Once | None) -> Once | None:
    """Begin with the request's key and its whole body; Replay when it was carried out before."""
    if once is not None:
        await once.enter(session, _canonical(await request.body()))
    return once


async def entered(request: Request, session: Db, once: Annotated[Once | None, Depends(get_once)]) -> Once | None:
    """Begin in the transaction of ``Db``."""
    return await _entered(request, session, once)


async def entered_plainly(
    request: Request, session: PlainDb, once: Annotated[Once | None, Depends(get_once)]
) -> Once | None:
    """Begin in the transaction of ``PlainDb``."""
    return await _entered(request, session, once)


def _canonical(body: bytes) -> bytes:
    """Return JSON the same however it was spelled; anything else as it is."""
    try:
        return json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except ValueError:
        return body


OnceStreamed = Annotated[Once | None, Depends(get_once)]
"""For a route that reads its body itself and calls ``enter``. Comes after the parameter that checks the scope."""
OnceOnly = Annotated[Once | None, Depends(entered)]
"""For a route whose transaction is ``Db``. Comes after the parameter that checks the scope."""
PlainOnce = Annotated[Once | None, Depends(entered_plainly)]
"""For a route whose transaction is ``PlainDb``. Comes after the parameter that checks the scope."""


class OnceRoute(APIRoute):
    """A route that keeps its answer under the request's key, before the transaction of ``Db`` is committed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await inner(request)
            if (once := _of(request)) is not None:
                await once.keep(response)
            return response

        return handle


def install(app: FastAPI) -> None:
    """Make the app answer replays, and keep refusals once their own transaction is rolled back."""
    refused = cast("Callable[[Request, Refusal], Awaitable[Response]]", app.exception_handlers[Refusal])

    @app.exception_handler(Replay)
    async def replayed(request: Request, replay: Replay) -> Response:
        return replay.response

    @app.exception_handler(Refusal)
    async def keep_refused(request: Request, refusal: Refusal) -> Response:
        response = await refused(request, refusal)
        once = _of(request)
        if once is not None and refusal.status in FOR_GOOD and refusal.reason not in _OF_THE_KEY:
            await once.keep_refusal(response)
        return response


def _of(request: Request) -> Once | None:
    return getattr(request.state, "once", None)


_OF_THE_KEY = frozenset({"idempotency_in_flight", "idempotency_key_reused"})
