"""Which addresses a git source may come from: public ones, and what the operator has listed.

The name is looked up once and git is told to use the very address that was checked, so that a name server which
answers differently the second time gains nothing.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from builder.outcome import Failure, Reason

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: IPv6 forms that carry an IPv4 address: what counts is the address inside (RFC 6052, RFC 8215).
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

#: Public by their number, and yet inside: Azure's metadata service ("What is IP address 168.63.129.16"), and what is reserved
#: for protocols (RFC 6890), among which Oracle has its own.
_INSIDE = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL whose host was checked; ``pin`` is curl's ``host:port:address``, None for a literal address."""

    url: str
    pin: str | None


async def find_target(url: str, allow: Sequence[str]) -> Target:
    """Check a git URL and look its host up; Failure(source_fetch) when it isn't https or isn't public.

    ``allow`` holds host names, addresses and networks that are let through all the same.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        raise _refused("it is not a URL") from None
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https":
        raise _refused("only https is")
    if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[\x00-\x20\x7f\\]", url):
        raise _refused("it holds more than host and path")
    literal = _literal(host)
    # Odd spellings of an address (017700000001, 0x7f.1) are read differently by different programs.
    if literal is None and not _NAME.fullmatch(host):
        raise _refused(f"{host!r} is not a host name")
    found = [literal] if literal else await _look_up(host, port)
    if host not in allow:
        for address in found:
            if not is_public(address) and not _listed(address, allow):
                raise _refused(f"{host} is at {address}, which is not public")
    if literal:
        return Target(url=url, pin=None)
    # The port is written out: curl matches the pin by it.
    first = ",".join(f"[{a}]" if a.version == 6 else str(a) for a in found)
    return Target(url=f"https://{host}:{port}{parts.path}", pin=f"{host}:{port}:{first}")


def is_public(address: Address) -> bool:
    """Tell whether an address is on the public internet, whatever form it is wrapped in."""
    inner: Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if any(address in network for network in _NAT64):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(inner)
    inside = any(address in network for network in _INSIDE)
    return address.is_global and not (address.is_multicast or address.is_reserved or inside)


async def _look_up(host: str, port: int) -> list[Address]:
    try:
        async with asyncio.timeout(20):
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise Failure(Reason.SOURCE_FETCH, f"The repository's host {host} could not be looked up.") from error
    return list(dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))


def _listed(address: Address, allow: Sequence[str]) -> bool:
    for entry in allow:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _refused(why: str) -> Failure:
    return Failure(Reason.SOURCE_FETCH, f"The repository's address is not allowed: {why}.")
