"""What routes are given: the context, a session that commits before the answer leaves, and who is calling."""

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.context import Context
from app.errors import Refusal, too_large, unauthorized
from app.models import ApiKey, Project

bearer = HTTPBearer(auto_error=False, description="An API key, or a run token on the builder's side.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def get_context(request: Request) -> Context:
    """Return the process's context."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(get_context)]


async def get_session(context: Ctx) -> AsyncIterator[AsyncSession]:
    """Open a transaction for the route; it is committed before the answer leaves (scope ``function``)."""
    async with context.sessions.begin() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_session, scope="function")]


def hash_key(key: str) -> bytes:
    """Return what is stored of an API key. Plain SHA-256: a key has 256 random bits, so it can't be guessed back."""
    return hashlib.sha256(key.encode()).digest()


async def get_project(credentials: Credentials, session: Db) -> Project:
    """Return the project whose key was sent; Refusal (401) otherwise."""
    if credentials is None:
        raise unauthorized()
    statement = (
        select(Project)
        .join(ApiKey, ApiKey.project_id == Project.id)
        .where(ApiKey.hash == hash_key(credentials.credentials), ApiKey.revoked_at.is_(None))
    )
    project = (await session.execute(statement)).scalar_one_or_none()
    if project is None:
        raise unauthorized("This API key is not valid.")
    return project


Caller = Annotated[Project, Depends(get_project, scope="function")]


async def get_token(credentials: Credentials) -> str:
    """Return the bearer token as it was sent."""
    if credentials is None:
        raise unauthorized("Send the run's token as `Authorization: Bearer slr.…`.")
    return credentials.credentials


Token = Annotated[str, Depends(get_token)]

Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]


def encode_cursor(*values: Any) -> str:
    """Return an opaque cursor."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> list[Any]:
    """Read a cursor back; Refusal (422) when it isn't one of ours."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, UnicodeError):
        values = None
    good = isinstance(values, list) and len(values) == len(kinds)
    if not good or not all(_fits(v, k) for v, k in zip(values, kinds, strict=True)):
        raise Refusal(422, "invalid_cursor", "cursor: is not one that this list gave")
    return list(values)


def _fits(value: object, kind: type) -> bool:
    """Tell whether a value can be compared with a column: PostgreSQL takes neither NUL nor more than 64 bits."""
    if isinstance(value, str):
        return kind is str and "\x00" not in value and value.isascii()
    return type(value) is int and kind is int and abs(value) < 2**63


async def read_body(request: Request, limit: int, what: str) -> bytes:
    """Return the request's body; Refusal (413) as soon as it goes over ``limit`` bytes."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large(f"{what} has {length} bytes; at most {limit} are taken")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large(f"{what} has more than {limit} bytes")
    return bytes(body)
