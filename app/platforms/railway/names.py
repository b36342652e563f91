"""Names, sizes and values as Railway takes them; nothing is asked of it here.

A service name has at most 32 characters (docs.railway.com, services), ours have 41: the installation and the id without what
stands between them are just 32. The kind is left out, so builders and services live in projects of their own.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from app.platforms.base import ImageRef, Rejected, Size, Unsupported
from app.platforms.railway.client import NAME

Kind = Literal["run", "svc"]


def short_name(name: str) -> str:
    """Return the name that a resource of ours has at Railway; names that aren't of our form stay as they are."""
    match = re.fullmatch(r"slp-([0-9a-z]{6})-[a-z]{3}-([0-9a-v]{26})", name)
    return match[1] + match[2] if match else name


def long_name(short: str, kind: Kind) -> str | None:
    """Return our name for a service at Railway, None when it isn't one of ours."""
    match = re.fullmatch(r"([0-9a-z]{6})([0-9a-v]{26})", short)
    return f"slp-{match[1]}-{kind}-{match[2]}" if match else None


def fit(size: Size, most: Size) -> Size:
    """Return the size as asked, since Railway takes any, up to what the plan allows."""
    if size.cpus > most.cpus or size.memory_mb > most.memory_mb:
        message = f"the plan allows at most {most.cpus:g} vCPU and {most.memory_mb} MiB"
        raise Unsupported(NAME, "fit", message)
    return Size(cpus=size.cpus, memory_mb=size.memory_mb)


def check_values(values: Mapping[str, str]) -> None:
    """Refuse values that Railway would expand: ``${{…}}`` reads other variables of the project, and can't be escaped."""
    for name, value in values.items():
        if "${{" in value:
            message = f"the value of {name} holds ${{{{, which Railway would replace; encode it, for example as base64"
            raise Rejected(NAME, "deploy", message)


def image_source(image: ImageRef) -> dict[str, Any]:
    """Return the fields that name a service's image by digest, and the credential it is pulled with."""
    fields: dict[str, Any] = {"source": {"image": image.reference}}
    if image.username and image.password:
        fields["registryCredentials"] = {"username": image.username, "password": image.password}
    return fields


def parts(handle: str | None) -> tuple[str | None, str | None]:
    """Split a handle, ``<service>/<deployment>``, into what is there of it."""
    service, _, deployment = (handle or "").partition("/")
    return service or None, deployment or None
