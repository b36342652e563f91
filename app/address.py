"""Which addresses of other people's choosing we may connect to: public ones, and what the operator has listed.

One guard for git sources and webhooks. A URL is checked when it is given, and its host is looked up right before the
connection, which is made to the very addresses that were checked: a name server that answers differently the second time
gains nothing. (The builder has a guard of its own, since it knows nothing of the app; a test holds both to one table.)
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[Address]]]

LOOK_UP_SECONDS = 10.0
_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: IPv6 forms that carry an IPv4 address: what counts is the address inside (RFC 6052, RFC 8215).
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
#: Public by their number, and yet inside: Azure's metadata service ("What is IP address 168.63.129.16"), and what is reserved
#: for protocols (RFC 6890), among which Oracle has its own.
_INSIDE = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))


class AddressError(Exception):
    """An address that is not allowed, or a name that leads nowhere; the text is fit for whoever gave it."""


def check_url(url: str, allow: Sequence[str]) -> None:
    """Raise AddressError when a URL can't be allowed whatever its host's name leads to.

    It is https, or http to a host that ``allow`` lists (names, addresses, networks); without user, password and fragment.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise AddressError("is not a URL") from None
    host = plain_host(parts.hostname or "")
    literal = _literal(host)
    if "@" in parts.netloc or "#" in url or not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressError("has a user, a fragment, or characters that have to be escaped")
    # Odd spellings of an address (017700000001, 0x7f.1) are read differently by different programs.
    if literal is None and not _NAME.fullmatch(host):
        raise AddressError(f"has no host name: {host[:100]!r}")
    known = host in allow or (literal is not None and _listed(literal, allow))
    if parts.scheme != "https" and not (parts.scheme == "http" and known):
        raise AddressError("must be https (http is for hosts that the operator has listed)")
    if literal is not None and not known and not is_public(literal):
        raise AddressError("is at an address that is not public")


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a name as the system knows them; OSError when there is none."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))


async def look_up(host: str, port: int, allow: Sequence[str], resolve: Resolve = resolve) -> list[Address]:
    """Return the addresses to connect to, all of them checked; AddressError when one of them is not allowed.

    Which one it is isn't told: names inside of the operator's network are nobody else's business.
    """
    host = plain_host(host)
    literal = _literal(host)
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = [literal] if literal else await resolve(host, port)
    except (OSError, UnicodeError, TimeoutError):
        raise AddressError(f"the host {host} could not be looked up") from None
    if host not in allow and not all(is_public(address) or _listed(address, allow) for address in found):
        raise AddressError(f"the host {host} is at an address that is not public")
    return found


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


def plain_host(host: str) -> str:
    """Return a host as it is compared: lower case, without the dot of a full name."""
    return host.rstrip(".").lower()


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
