"""Whether this process lives and can serve, without a key, for load balancers; and its metrics, for the operator."""

import asyncio

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from app import __version__
from app.api.deps import Ctx, Operator
from app.api.reasons import responses
from app.api.schemas import Ready
from app.db import DATABASE_AWAY, schema_is_current
from app.errors import unavailable
from app.gauges import CONTENT_TYPE, Page

router = APIRouter(tags=["health"])

CHECK_SECONDS = 3
CANT_SERVE: tuple[type[Exception], ...] = (*DATABASE_AWAY, SQLAlchemyError, OSError)


@router.get("/healthz", responses=responses())
async def get_health() -> Ready:
    """The process lives."""
    return Ready(status="ok", version=__version__)


@router.get("/readyz", responses=responses(schema_outdated=503))
async def get_readiness(context: Ctx) -> Ready:
    """The process can serve: its database answers and has the newest schema."""
    try:
        async with asyncio.timeout(CHECK_SECONDS), context.sessions() as session:
            current = await schema_is_current(session)
    except CANT_SERVE as e:
        raise unavailable("The database does not answer.", reason="database_unavailable") from e
    if not current:
        raise unavailable("The database's schema is not current; run `slipway migrate`.", reason="schema_outdated")
    return Ready(status="ready", version=__version__)


@router.get(
    "/metrics",
    response_class=Response,
    responses=responses(operators_only=403) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(request: Request, _operator: Operator) -> Response:
    """What is counted, in Prometheus's text format; see docs/observability.md. For the operator: it is about all projects."""
    page: Page = request.app.state.metrics
    return Response(await page.render(), media_type=CONTENT_TYPE)
