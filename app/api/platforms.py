"""What can be built and run where; made from the code that does it."""

from collections.abc import Sequence
from dataclasses import asdict

from fastapi import APIRouter

from app import breaker, budgets
from app.api.deps import Caller, Ctx
from app.api.reasons import responses
from app.api.schemas import BreakerOut, Capabilities, Page, PlatformOut, RequestBudget, RequestLimit, TraitsOut
from app.capabilities import allowance, standing
from app.db import alone
from app.platforms.budget import Allowance
from app.platforms.catalog import Entry

router = APIRouter(prefix="/v1/platforms", tags=["platforms"])


@router.get("", responses=responses())
async def list_platforms(context: Ctx, project: Caller) -> Page[PlatformOut]:
    """List every platform: what it can do, what is missing where it isn't configured, and how it is doing."""
    async with alone(context.sessions) as session:
        states = await breaker.states(session)
        items = []
        for entry in context.catalog.entries.values():
            counted = allowance(context.settings, entry)
            left = await budgets.left(session, counted) if counted else None
            budget = _budget(counted, left) if counted and left else None
            items.append(_platform(entry, budget, [s for s in states if s.platform == entry.name]))
    return Page(items=items)


def _platform(entry: Entry, budget: RequestBudget | None, states: Sequence[breaker.State]) -> PlatformOut:
    traits = asdict(entry.traits)
    can = {k: v for k, v in traits.items() if k in Capabilities.model_fields}
    return PlatformOut(
        name=entry.name,
        configured=entry.configured,
        missing=list(entry.missing),
        imitated=entry.imitated,
        builders=entry.builders,
        services=entry.services,
        problems=dict(entry.problems),
        proof=standing(entry),
        capabilities=Capabilities(
            ephemeral_builder=entry.builders,
            api_triggered_builds=entry.builders,
            deploy_from_image=entry.services,
            **can,
        ),
        traits=TraitsOut(**{k: v for k, v in traits.items() if k in TraitsOut.model_fields}),
        budget=budget,
        breakers=[
            BreakerOut(**{k: v for k, v in asdict(s).items() if k != "region"}, region=s.region or None) for s in states
        ],
    )


def _budget(counted: Allowance, left: budgets.Left) -> RequestBudget:
    limit = counted.limit("")
    return RequestBudget(
        account=counted.account,
        limit=RequestLimit(
            requests=limit.limit, seconds=limit.window, burst=limit.capacity, per_object=counted.per_object
        ),
        left=round(left.requests, 2),
        closed_seconds=round(left.closed_seconds, 1),
    )
