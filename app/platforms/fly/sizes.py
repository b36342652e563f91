"""Fly's machine sizes (fly.md §3 config.guest): memory in steps of 256 MiB, bounded per CPU."""

import math
from typing import Any

from app.platforms.base import Size, Unsupported
from app.platforms.fly.client import NAME

_STEP = 256
_CPUS = (1, 2, 4, 8, 16)
_PER_CPU = {"shared": (256, 2048), "performance": (2048, 8192)}
#: Shared CPUs have a small share of a core and a burst: right for a service, far too slow for the compiler (fly.md §4).
SERVICE_KINDS = ("shared", "performance")
BUILDER_KINDS = ("performance",)


def fit(size: Size, kinds: tuple[str, ...], operation: str) -> Size:
    """Return the smallest size of the first of these kinds that has one; Unsupported when none has."""
    for kind in kinds:
        least, most = _PER_CPU[kind]
        for cpus in _CPUS:
            memory = max(least * cpus, math.ceil(size.memory_mb / _STEP) * _STEP)
            if cpus >= size.cpus and memory <= most * cpus:
                return Size(cpus=cpus, memory_mb=memory, plan=f"{kind}-cpu-{cpus}x")
    raise Unsupported(NAME, operation, f"no machine has {size.cpus:g} CPUs and {size.memory_mb} MB")


def guest(size: Size) -> dict[str, Any]:
    """Return the guest block of a fitted size."""
    assert size.plan is not None
    return {"cpu_kind": size.plan.partition("-")[0], "cpus": int(size.cpus), "memory_mb": size.memory_mb}
