"""Make sure that a service is awake which its platform puts to sleep and wakes by itself.

The platform's edge wakes it for any request, but what it answers meanwhile may be an error of its own: Railway's first answers
are 502, or a 404 of a service it does not find, for up to half a minute (railway.md §5). So the first request after a quiet time
is one of ours, which may be lost, to the path that was healthy when the release went live; the client's follows.
"""

import asyncio

import httpx

from app.platforms.address import request_for
from app.platforms.http import trust

#: So long after traffic no platform has put a service to sleep yet: the shortest idle time of any is a minute.
AWAKE_SECONDS = 30.0
ANSWER_SECONDS = 10.0
#: What an edge says while nothing listens behind it. A program may say so too, which is then believed in the end.
_ASLEEP = frozenset({404, 502, 503, 504})


async def knock(url: str, path: str, seconds: float) -> bool:
    """Ask until the program itself answers, for so long; False when nothing answered at all."""
    base, headers = request_for(url)
    loop, pause, answered = asyncio.get_running_loop(), 0.1, False
    until = loop.time() + seconds
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False, verify=trust(), headers=headers) as http:
        while True:
            try:
                status = (await http.get(base + path)).status_code
            except httpx.HTTPError:
                answered = False
            else:
                answered = True
                if status not in _ASLEEP:
                    return True
            if loop.time() + pause > until:
                return answered
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 2.0)
