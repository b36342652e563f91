"""When two builds would come to the same image: the key is a digest of all that an image depends on.

That is the source tree (go.mod, go.sum and vendor/ are of it), the toolchain with the base of the image, and what the
request says of how to build. A source that requires modules without go.sum or vendor/ never comes to an image at all: the
builder refuses it, since it could be another one tomorrow. The size and the time-out of a builder are not in the key.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from app.context import Context
from app.sql import as_json

FORM = 1
"""Of the key; another one whenever what it is made of changes."""


def key(spec: Mapping[str, Any], config: Mapping[str, Any] | None, source_digest: str, toolchain: str) -> str:
    """Return the key of what becomes of a source by this toolchain, as a build's ``spec`` and ``config`` want it."""
    flags = spec["build"]
    # The image names the port that it listens on.
    parts = [source_digest, toolchain, flags["kind"], flags["package"], flags["goarch"], image_port(config)]
    return f"sha256:{hashlib.sha256(as_json([FORM, *parts]).encode()).hexdigest()}"


def image_port(config: Mapping[str, Any] | None) -> int:
    """Return the port that a build's image names."""
    return int((config or {}).get("port", 8080))


def wanted(context: Context, values: Mapping[str, Any]) -> str | None:
    """Return the key of a new build; None when it shall be built in any case, or it is not known what it will come to.

    That of a git source is known once its commit was fetched, so only a retry has one.
    """
    spec = values["spec"]
    if not context.settings.build_cache or not spec["build"].get("cache", True):
        return None
    digest, toolchain = values["source"].get("digest"), context.toolchain(values["builder_platform"])
    if digest is None or toolchain is None:
        return None
    return key(spec, values.get("config"), digest, toolchain)
