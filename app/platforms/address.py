"""How an address of a service is asked: by itself when it is an instance's, by its own name when it is a platform's edge.

An address that is an IP address belongs to one instance, which may be told the name that the client asked for. One that is a host
name is shared by many services, and the edge behind it finds the service by that name and by no other.
"""

import contextlib
import ipaddress
from urllib.parse import urlsplit

import httpx

from app.platforms.http import trust
from app.settings import is_loopback

KNOCK_SECONDS = 10.0


def own_name(url: str) -> str | None:
    """Return the ``Host`` an address has to be asked with, None when it takes any."""
    parts = urlsplit(url)
    try:
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return parts.netloc
    return None


def connect_to(url: str) -> str:
    """Return the host to connect to: names below ``localhost`` are this machine, which not every resolver knows (RFC 6761)."""
    host = urlsplit(url).hostname or ""
    return "127.0.0.1" if host.endswith(".localhost") and is_loopback(url) else host


def request_for(url: str) -> tuple[str, dict[str, str]]:
    """Return the base URL to send requests to, and the headers they need: a Host where that is another name."""
    parts, host = urlsplit(url), connect_to(url)
    if host == parts.hostname:
        return url, {}
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}", {"Host": parts.netloc}


async def knock(url: str) -> None:
    """Send one request, which is what wakes a service that its platform put to sleep; how it is answered does not matter."""
    base, headers = request_for(url)
    async with httpx.AsyncClient(timeout=KNOCK_SECONDS, trust_env=not is_loopback(url), verify=trust()) as http:
        with contextlib.suppress(httpx.HTTPError):
            await http.get(base, headers=headers)
