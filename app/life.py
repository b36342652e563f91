"""A worker's sign of life: it has no port that a health check could ask."""

import asyncio
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.context import Context

log = structlog.get_logger()

LIFE_SECONDS = 5.0
"""How often it is given; ``app.check`` gives a worker up after six of these."""


async def show_life(context: Context, ready: asyncio.Event) -> None:
    """Touch ``<home>/worker.alive`` from ``ready`` on, as long as the database answers."""
    sign = context.settings.home / "worker.alive"
    await ready.wait()
    try:
        while True:
            try:
                async with asyncio.timeout(LIFE_SECONDS), context.sessions() as session:
                    await session.execute(select(1))
                await asyncio.to_thread(_touch, sign)
            except (SQLAlchemyError, OSError) as e:
                log.warning("no sign of life", error=str(e) or type(e).__name__)
            await asyncio.sleep(LIFE_SECONDS)
    finally:
        sign.unlink(missing_ok=True)


def _touch(sign: Path) -> None:
    sign.parent.mkdir(parents=True, exist_ok=True)
    sign.touch()
