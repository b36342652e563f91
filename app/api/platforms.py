"""What can be built and run where; made from the code that does it."""

from dataclasses import asdict

from fastapi import APIRouter

from app.api.deps import Caller, Ctx
from app.api.problems import responses
from app.api.schemas import Page, PlatformOut, TraitsOut

router = APIRouter(prefix="/v1/platforms", tags=["platforms"])


@router.get("", responses=responses())
async def list_platforms(context: Ctx, project: Caller) -> Page[PlatformOut]:
    """List every platform with its traits, and what is missing where it isn't configured."""
    items = [
        PlatformOut(
            name=entry.name,
            configured=entry.configured,
            missing=list(entry.missing),
            imitated=entry.imitated,
            builders=entry.builders,
            services=entry.services,
            traits=TraitsOut(**{k: v for k, v in asdict(entry.traits).items() if k in TraitsOut.model_fields}),
        )
        for entry in context.catalog.entries.values()
    ]
    return Page(items=items)
