"""What routes are given: the context, a session that commits before the answer leaves, and who is calling."""

import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.ext.asyncio import AsyncSession

from app.builds.caller import authenticate
from app.context import Context
from app.db import transaction
from app.errors import Refusal, forbidden, too_large, unauthorized
from app.keys import Doorman, Holder
from app.models import Project
from app.requests import SCOPES, Scope
from app.sql import Transaction

api_key = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`Authorization: Bearer slp_…`. What a key may do: "
    + "; ".join(f"`{scope}`: {words}" for scope, words in SCOPES.items())
    + ".",
)
run_token = HTTPBearer(
    auto_error=False, scheme_name="RunToken", description="`Authorization: Bearer slr.…`: what a builder was given."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(api_key)]


async def get_context(request: Request) -> Context:
    """Return the process's context."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(get_context)]


async def get_session(context: Ctx) -> AsyncIterator[AsyncSession]:
    """Open a transaction for the route; it is committed before the answer leaves (scope ``function``)."""
    async with context.sessions.begin() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_transaction(context: Ctx) -> AsyncIterator[Transaction]:
    """Do the same in plain SQL, for the busiest routes."""
    async with transaction(context.pool) as plain:
        yield plain


PlainDb = Annotated[Transaction, Depends(get_transaction, scope="function")]


ABOUT = frozenset({"build_id", "webhook_id"})
"""Parts of a path that every line logged for the request has."""


async def get_doorman(request: Request) -> Doorman:
    """Return what tells callers by their keys."""
    doorman: Doorman = request.app.state.doorman
    return doorman


Door = Annotated[Doorman, Depends(get_doorman)]


async def get_caller(
    request: Request,
    wanted: SecurityScopes,
    credentials: Credentials,
    doorman: Annotated[Doorman, Depends(get_doorman)],
) -> Holder:
    """Return who is calling; Refusal: 401 without a valid key, 403 when the key's scopes are too narrow for the route."""
    if credentials is None:
        raise unauthorized()
    caller = await doorman.admit(credentials.credentials)
    if caller is None:
        raise unauthorized("This API key is not valid.")
    about = {k: v for k, v in request.path_params.items() if k in ABOUT}
    structlog.contextvars.bind_contextvars(project_id=caller.project.id, key_id=caller.key_id, **about)
    for scope in wanted.scopes:
        need(caller, scope)
    return caller


async def identify(request: Request) -> None:
    """Refusal (401, 403) unless the request has a good key, or on the builder's side its run's token."""
    credentials = await api_key(request)
    run_id = request.path_params.get("run_id")
    if run_id is not None:
        authenticate(request.app.state.context, run_id, await get_token(credentials))
    else:
        await get_caller(request, SecurityScopes(), credentials, request.app.state.doorman)


def need(caller: Holder, scope: str) -> None:
    """Refusal (403) when the key's scopes don't include this one."""
    if not caller.may(scope):
        has = ", ".join(sorted(caller.scopes))
        raise forbidden(f"This needs a key with the scope {scope}; this key has {has}.", reason="insufficient_scope")


async def get_project(caller: Annotated[Holder, Depends(get_caller)]) -> Project:
    """Return the caller's project."""
    return caller.project


async def get_operator(caller: Annotated[Holder, Depends(get_caller)]) -> Holder:
    """Return the operator; Refusal (403) for everybody else."""
    if not caller.operator:
        raise forbidden("Only an admin key of the default project may do this.", reason="operators_only")
    return caller


KeyHolder = Annotated[Holder, Depends(get_caller)]
Caller = Annotated[Project, Security(get_project)]
BuildsRead = Annotated[Project, Security(get_project, scopes=[Scope.BUILDS_READ])]
BuildsWrite = Annotated[Project, Security(get_project, scopes=[Scope.BUILDS_WRITE])]
ServicesRead = Annotated[Project, Security(get_project, scopes=[Scope.SERVICES_READ])]
ServicesWrite = Annotated[Project, Security(get_project, scopes=[Scope.SERVICES_WRITE])]
AllRead = Annotated[Project, Security(get_project, scopes=[Scope.BUILDS_READ, Scope.SERVICES_READ])]
Admin = Annotated[Holder, Security(get_caller, scopes=[Scope.ADMIN])]
Operator = Annotated[Holder, Security(get_operator, scopes=[Scope.ADMIN])]


async def get_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(run_token)]) -> str:
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
    """Return the body; Refusal 413 as soon as it goes over ``limit`` bytes."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large(f"{what} has {length} bytes; at most {limit} are taken")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large(f"{what} has more than {limit} bytes")
    return bytes(body)
