"""Who may do what in the embedded registry: the Bearer check of every route, and the token endpoint.

The flow is the one all OCI clients know (distribution's "Token Authentication"): 401 with ``WWW-Authenticate: Bearer``
names the endpoint and the scope, a GET there with Basic credentials gives the token.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.images.errors import Fault
from app.images.tokens import Grants, Scope, TokenAuthority, parse_scope
from app.settings import is_loopback

Authenticate = Callable[[str, str], Awaitable[Grants | None]]

SERVICE = "slipway"
#: How long a token of the endpoint lives; clients fetch the next one by themselves.
TOKEN_LIFE = timedelta(minutes=5)
_MAX_SCOPES = 16


class Guard:
    """Checks tokens, says how to get one, and hands them out to whom ``authenticate`` knows."""

    def __init__(self, authority: TokenAuthority, authenticate: Authenticate, public_url: str | None) -> None:
        self._authority = authority
        self._authenticate = authenticate
        self._public = public_url

    def check(self, request: Request, *scopes: Scope, optional: tuple[Scope, ...] = ()) -> Grants:
        """Return the caller's grants when they cover ``scopes``; else raise a 401 that asks for them and ``optional``.

        A good token of too small a scope gets 401 too: it is what makes a client ask for a better one.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        grants = self._authority.verify(token.strip()) if kind.lower() == "bearer" else None
        if grants and all(s.actions <= grants.allowed(s.repository) for s in scopes):
            return grants
        challenge = f'Bearer realm="{self._realm(request)}",service="{SERVICE}"'
        if scopes:
            challenge += f',scope="{" ".join(map(str, (*scopes, *optional)))}"'
        if token:
            challenge += f',error="{"insufficient_scope" if grants else "invalid_token"}"'
        code, text = ("DENIED", "the token does not cover this") if grants else ("UNAUTHORIZED", "send a Bearer token")
        raise Fault(401, code, text, {"WWW-Authenticate": challenge})

    async def token(self, request: Request) -> Response:
        """GET /v2/token: mint what of the wanted scopes the Basic credential is good for."""
        name, password = _basic(request)
        grants = await self._authenticate(name, password)
        if grants is None:
            raise _anonymous("the name or the password is wrong")
        words = " ".join(request.query_params.getlist("scope")).split()[:_MAX_SCOPES]
        wanted: dict[str, Scope] = {}
        for scope in filter(None, map(parse_scope, words)):
            before = wanted.get(scope.repository, scope)
            wanted[scope.repository] = Scope(scope.repository, scope.actions | before.actions)
        token = self._authority.mint(
            grants.subject, grants.narrow(wanted.values()), TOKEN_LIFE, until=grants.expires_at
        )
        now = self._authority.clock()
        body = {
            "token": token.value,
            "access_token": token.value,
            "expires_in": max(1, int(token.expires_at - now)),
            "issued_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    def _realm(self, request: Request) -> str:
        # Who came over loopback is answered there: the public address may not lead back from here.
        own = f"{request.url.scheme}://{request.url.netloc}"
        if self._public is None or is_loopback(own):
            return f"{own}{request.scope.get('root_path', '')}/token".replace('"', "%22")
        return f"{self._public.rstrip('/')}/v2/token"


def _basic(request: Request) -> tuple[str, str]:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        raise _anonymous("send a name and a password")
    try:
        name, colon, password = base64.b64decode(given.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise _anonymous("the credential can't be read") from error
    if not colon:
        raise _anonymous("the credential can't be read")
    return name, password


def _anonymous(message: str) -> Fault:
    return Fault(401, "UNAUTHORIZED", message, {"WWW-Authenticate": f'Basic realm="{SERVICE}"'})
