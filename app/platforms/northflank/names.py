"""Our names on Northflank, and its plans.

A release is a service of its own there, so that two can run side by side. Its name holds the release's id, which the sweep
reads back, and the end of the service's, by which all releases of a service are found: listings tell nothing else of ours.
Ids are slugs of names, so a name in lower case with hyphens is its own id. Bounds: 52 characters for jobs, 54 for services
and 39 for registry credentials.
"""

import re

from app.platforms.base import Misconfigured, Size, Unsupported

_RELEASE = re.compile(r"slp-([0-9a-z]{6})-([0-9a-v]{26})-[0-9a-v]{7}")
_TAIL = 7
#: The host of an image: with a dot, without a port. A path with both port and digest does not fit its pattern for images.
_HOST = re.compile(r"[a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+")

#: Plan, cores, MiB; from the price list of November 2026.
PLANS = (
    ("nf-compute-10", 0.1, 256),
    ("nf-compute-20", 0.2, 512),
    ("nf-compute-50", 0.5, 1024),
    ("nf-compute-100-2", 1.0, 2048),
    ("nf-compute-200-4", 2.0, 4096),
    ("nf-compute-400-16", 4.0, 16384),
    ("nf-compute-800-32", 8.0, 32768),
)


PULLABLE = "a host with a dot, on port 443"


def pullable(address: str) -> bool:
    """Tell whether it pulls images from this registry or reference, with or without a scheme."""
    return _HOST.fullmatch(address.split("://", 1)[-1].partition("/")[0]) is not None


def service_id(service: str, release: str) -> str:
    """Return the id of a release's service: ``slp-<installation>-<release>-<end of the service>``, 45 characters."""
    head, _, own = release.rpartition("-")
    return f"{head.rpartition('-')[0]}-{own}-{service[-_TAIL:]}"


def belongs(nf_id: str, service: str) -> bool:
    """Tell whether an id looks like one of this service's releases."""
    match = _RELEASE.fullmatch(nf_id)
    return match is not None and service.startswith(f"slp-{match[1]}-") and nf_id.endswith(service[-_TAIL:])


def release_name(nf_id: str, installation: str) -> str | None:
    """Return the release's remote name that an id stands for, None when it is not of this installation."""
    match = _RELEASE.fullmatch(nf_id)
    return f"slp-{match[1]}-rel-{match[2]}" if match and match[1] == installation else None


def credential_id(nf_id: str) -> str:
    """Return the id of the pull credential of a release: account-wide there, and shorter, so without the service."""
    return nf_id.rpartition("-")[0]


def fit(size: Size, operation: str) -> Size:
    """Return the smallest plan that is at least ``size``, or the one it names; Unsupported when there is none."""
    for plan, cpus, memory_mb in PLANS:
        if (size.plan in {None, plan}) and cpus >= size.cpus and memory_mb >= size.memory_mb:
            return Size(cpus=cpus, memory_mb=memory_mb, plan=plan)
    asked = f"{size.cpus:g} cores and {size.memory_mb} MB" + (f" as {size.plan}" if size.plan else "")
    raise Unsupported("northflank", operation, f"no plan has {asked}; the largest is {PLANS[-1][0]}")


def image_path(reference: str, operation: str) -> str:
    """Return an image's reference as Northflank takes it; Misconfigured, with what to do, where it would not."""
    host, _, rest = reference.partition("/")
    if not _HOST.fullmatch(host) or "@sha256:" not in rest:
        message = f"it pulls images by digest from hosts with a dot and without a port, not {host!r}: put the registry"
        raise Misconfigured(
            "northflank", operation, f"{message} on port 443 and say so by SLIPWAY_NORTHFLANK__REGISTRY"
        )
    return reference
