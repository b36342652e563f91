"""What an answer of a registry means: its body under a bound, and the error that says what to do next."""

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied, RegistryError, RegistryUnavailable

_MAX_ERROR = 8192


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    """Tell whether two URLs have the same scheme, host and port."""
    ports = {"http": 80, "https": 443}
    a, b = ((u.scheme, u.host, u.port or ports.get(u.scheme)) for u in (one, other))
    return a == b


def unavailable(where: str, error: Exception) -> RegistryUnavailable:
    """Turn a transport error into ours."""
    return RegistryUnavailable(f"{where} can't be reached: {type(error).__name__}")


async def read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    """Return an answer's body; ImageInvalid when it is longer."""
    body = bytearray()
    async for data in response.aiter_raw():
        body += data
        if len(body) > max_bytes:
            raise ImageInvalid(f"{response.url.host} answers with more than {max_bytes} bytes")
    return bytes(body)


def read_json(body: bytes) -> dict[str, Any]:
    """Return a JSON object, empty when the body is something else."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def refusal(response: httpx.Response) -> RegistryError:
    """Read an answer's body, when it is short, and return the error that the answer means if it isn't a success."""
    said, status = await _words(response), response.status_code
    text = f"{response.url.host} answers {status} to {response.request.method} {response.url.path}{said}"
    if status == 429 or status >= 500:
        return RegistryUnavailable(text, retry_after=_retry_after(response))
    if status == 404:
        return ImageNotFound(text)
    return RegistryDenied(text) if status in {401, 403, 405, 413} else ImageInvalid(text)


async def _words(response: httpx.Response) -> str:
    try:
        first: Any = read_json(await read_bounded(response, _MAX_ERROR))["errors"][0]
        return f": {first.get('code')} {first.get('message')}"[:300]
    except (httpx.TransportError, RegistryError, LookupError, TypeError, AttributeError):
        return ""


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
