"""A caller of the running Slipway, as anybody outside is one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx

from app.checkup.report import Trouble, operator
from app.lifecycle import Owner
from app.platforms.address import request_for

CALL_SECONDS = 30.0
LOOK_SECONDS = 0.5

Json = dict[str, Any]
T = TypeVar("T")


class Client:
    """The public API with a key, and services by their public addresses."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"}
        self._api = httpx.AsyncClient(base_url=url, headers=headers, timeout=CALL_SECONDS, trust_env=False)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.aclose()

    async def call(self, method: str, path: str, *, absent: bool = False, **options: Any) -> Json:
        """Call the API; with ``absent`` a 404 is an empty answer. Trouble on anything else that is no success."""
        try:
            answer = await self._api.request(method, path, **options)
        except httpx.HTTPError as e:
            what = f"{method} {self.url}{path}: {str(e) or type(e).__name__}"
            raise operator(what, "See to it that Slipway runs at this address, then check again.") from e
        if answer.status_code == 401:
            raise operator(
                "the running Slipway refused SLIPWAY_API_KEY",
                "Set one that `slipway keys create NAME --direct` printed.",
            )
        if answer.status_code == 422:
            raise operator(f"the build was refused: {_detail(answer)}", "Set what it names for the running Slipway.")
        if not answer.is_success and not (absent and answer.status_code in {404, 409}):
            raise Trouble(
                f"{method} {path}: {answer.status_code} {_detail(answer)}",
                Owner.US,
                "See the log of the running Slipway.",
            )
        return dict(answer.json()) if answer.is_success and answer.content else {}


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return "; ".join([str(problem["detail"]), *(e["message"] for e in problem.get("errors", ()))])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


async def ask(url: str) -> Json:
    """GET a service's ``/`` and return its JSON; ``httpx.HTTPError`` when nobody answers with a success."""
    base, headers = request_for(url)
    async with httpx.AsyncClient(timeout=CALL_SECONDS, headers=headers, trust_env=False) as client:
        answer = await client.get(f"{base}/")
        answer.raise_for_status()
        try:
            return dict(answer.json())
        except ValueError as e:
            raise httpx.DecodingError(f"{url} does not answer with JSON") from e


async def until(look: Callable[[], Awaitable[T | None]], seconds: float, late: Callable[[], Trouble]) -> T:
    """Look again and again until there is something; ``late`` is raised when there is nothing in time."""
    deadline = time.monotonic() + seconds
    while (found := await look()) is None:
        if time.monotonic() > deadline:
            raise late()
        await asyncio.sleep(LOOK_SECONDS)
    return found
