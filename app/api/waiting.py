"""``Prefer: wait=N`` (RFC 7240, section 4.3): an answer that waits for a build's end, without a connection to the database."""

import asyncio
import re

from fastapi import Response
from sqlalchemy import select

from app.api.follower import Topic
from app.api.hub import Hub
from app.db import alone
from app.lifecycle import is_terminal
from app.models import Build

MOST_SECONDS = 60
_WAIT = re.compile(r"""(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,6})"?\s*(?=$|[,;])""", re.IGNORECASE)


def preferred(prefer: str | None) -> int | None:
    """Return how many seconds the caller would wait, at most what we do; None when it would not. Nonsense is no wish."""
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), MOST_SECONDS) if match else None


def applied(response: Response, seconds: int | None) -> None:
    """Say that the wish was followed."""
    if seconds is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"


async def for_end(hub: Hub, build_id: str, key_id: str, seconds: float) -> None:
    """Return when the build has ended or the time is over; sooner when the process ends or the key is revoked."""
    hub.check_room()
    statement = select(Build.status).where(Build.id == build_id)
    until = asyncio.get_running_loop().time() + seconds
    with hub.follow(key_id, Topic("build", build_id)) as follower:
        while not follower.over:
            follower.take()
            async with alone(hub.context.sessions) as session:
                status = (await session.execute(statement)).scalar_one_or_none()
            left = until - asyncio.get_running_loop().time()
            if status is None or is_terminal(status) or left <= 0 or not await follower.wait(left):
                return
