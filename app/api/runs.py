"""The builder's side: see ``docs/builder-protocol.md``. Opened by a run token only."""

from typing import Annotated, Any, Literal, TypeVar

import structlog
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from app import sql
from app.api.deps import Ctx, Db, Token, read_body
from app.api.problems import from_validation
from app.api.reasons import responses
from app.api.schemas import Answer
from app.builds import complete, completion, report
from app.builds.caller import Caller, authenticate
from app.fields import Int, Received
from app.models import Run

router = APIRouter(prefix="/v1/runs/{run_id}", tags=["runs"], responses=responses(run_not_yours=409, run_over=410))

M = TypeVar("M", bound=BaseModel)
Stage = Literal["fetch", "modules", "compile", "image", "push", "reported"]


class FromBuilder(Received):
    """Unknown fields are ignored, so that a newer builder can talk to an older control plane."""

    model_config = ConfigDict(extra="ignore")
    instance: str = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")


class Heartbeat(FromBuilder):
    """I live, and this is what I do."""

    stage: Stage | None = None


class Line(BaseModel):
    """One log line: Unix seconds, stream, text."""

    model_config = ConfigDict(strict=True)

    t: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    s: Literal["stdout", "stderr", "builder"]
    m: str


class Lines(FromBuilder):
    """A batch of lines; `seq` is the number of the first."""

    model_config = ConfigDict(strict=True)

    seq: Int = Field(ge=0, le=2**53)
    lines: list[Line] = Field(max_length=5000)


class Orders(RootModel[dict[str, Any]]):
    """What the builder shall do; `docs/builder-protocol.md` has each field."""


class HeartbeatAnswer(Answer):
    """Whether to go on, and until when (Unix seconds)."""

    cancel: bool
    deadline: float


class PushGrantAnswer(Answer):
    """A Bearer for pull and push on one repository."""

    registry: str
    repository: str
    token: str
    expires_at: float


class CompletionAnswer(Answer):
    """What became of the report."""

    accepted: bool
    build_id: str
    build_status: str | None


async def get_caller(run_id: str, token: Token, context: Ctx) -> Caller:
    """Return who calls, before anything else of the request is looked at."""
    caller = authenticate(context, run_id, token)
    structlog.contextvars.bind_contextvars(run_id=run_id)
    return caller


Known = Annotated[Caller, Depends(get_caller)]


async def get_run(caller: Known, session: Db) -> Run:
    """Return the run that the token opens."""
    return caller.is_of(await session.get(Run, caller.run_id))


async def get_run_apart(caller: Known, context: Ctx) -> Run:
    """Do the same and leave no transaction open, for routes that go on to ask a registry."""
    row = await context.pool.fetchrow("select * from run where id = $1", caller.run_id)
    return caller.is_of(sql.load(Run, row) if row else None)


Opened = Annotated[Run, Depends(get_run, scope="function")]
OpenedApart = Annotated[Run, Depends(get_run_apart)]


@router.post("/claim", responses=responses(run_claimed=409))
async def claim_run(caller: Known, body: FromBuilder, context: Ctx) -> Orders:
    """Take the run; the first instance wins and gets its orders."""
    return Orders(await report.claim(context, caller, body.instance))


@router.get("/source", response_class=StreamingResponse, responses=responses(source_not_kept=409))
async def get_run_source(run: Opened, context: Ctx, session: Db) -> StreamingResponse:
    """Return the source as a gzipped tar."""
    return StreamingResponse(await report.source(context, session, run), media_type="application/gzip")


@router.post("/heartbeat")
async def heartbeat_run(run: Opened, body: Heartbeat, session: Db) -> HeartbeatAnswer:
    """Say that the builder lives."""
    return HeartbeatAnswer(**await report.heartbeat(session, run, body.instance, body.stage))


@router.post("/logs", status_code=204)
async def add_run_logs(caller: Known, request: Request, context: Ctx) -> Response:
    """Take a batch of log lines."""
    raw = await read_body(request, 4 * 1024 * 1024, "a batch of lines")
    body = _parse(Lines, raw)
    lines = [line.model_dump() for line in body.lines]
    async with context.sessions.begin() as session:  # not before: the body comes as slowly as its sender likes
        await report.add_logs(context, session, await get_run(caller, session), body.instance, body.seq, lines)
    return Response(status_code=204)


@router.post("/push-grant", responses=responses(run_not_yours=409, registry_unavailable=503))
async def grant_run_push(run: OpenedApart, body: FromBuilder, context: Ctx) -> PushGrantAnswer:
    """Hand out the right to push the image."""
    grant = await report.push_grant(context, run, body.instance)
    return PushGrantAnswer(
        registry=grant.registry, repository=grant.repository, token=grant.token, expires_at=grant.expires_at
    )


@router.post("/complete", responses=responses(run_not_yours=409, registry_unavailable=503))
async def complete_run(
    caller: Known,
    request: Request,
    token: Token,
    context: Ctx,
    webhook_id: Annotated[str, Header(min_length=1, max_length=128)],
    webhook_timestamp: Annotated[str, Header(max_length=20)],
    webhook_signature: Annotated[str, Header(max_length=1024)],
) -> CompletionAnswer:
    """Take the builder's last word: signed, once, and checked against the registry."""
    raw = await read_body(request, context.settings.max_completion_bytes, "a completion")
    completion.verify_signature(token, webhook_id, webhook_timestamp, webhook_signature, raw)
    said = _parse(completion.Completion, raw)
    return CompletionAnswer(**await complete.complete(context, caller, webhook_id, said))


def _parse(model: type[M], raw: bytes) -> M:
    try:
        return model.model_validate_json(raw)
    except ValidationError as e:
        raise from_validation(e.errors(include_input=False)) from None
