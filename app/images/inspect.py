"""What an image is, read from the registry itself, and whether we would run it."""

import json
from dataclasses import dataclass
from typing import Any

from app.images.copy import read_manifest
from app.images.errors import ImageInvalid
from app.images.source import Source

_MAX_CONFIG = 1024 * 1024
_MAX_LAYERS = 128
#: The account that the builder makes in every image; anything else could be root.
RUN_AS = "65532"


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """One image. ``size`` is config, layers and manifest together, in bytes, as the registry stores them."""

    digest: str
    size: int
    os: str
    architecture: str
    user: str
    entrypoint: tuple[str, ...]
    created: str | None
    labels: dict[str, str]


async def inspect(source: Source, repository: str, digest: str) -> ImageInfo:
    """Read manifest and config of one image; ImageInvalid when it isn't a plain, whole image."""
    manifest = await source.get_manifest(repository, digest)
    content = read_manifest(manifest)
    layers, config = content.get("layers"), content.get("config")
    if not config or not isinstance(layers, list) or content.get("manifests"):
        raise ImageInvalid(f"{digest} is not a single image.")
    if len(layers) > _MAX_LAYERS:
        raise ImageInvalid(f"The image has {len(layers)} layers; at most {_MAX_LAYERS} are accepted.")
    size = len(manifest.body)
    for descriptor in (config, *layers):
        # Not every registry compares what a manifest says with what it stores.
        real = await source.blob_size(repository, descriptor["digest"])
        if real is None or real != descriptor["size"]:
            raise ImageInvalid(f"The image's blob {descriptor['digest']} is missing or not of the size it claims.")
        size += real
    raw = await source.get_blob(repository, config["digest"], max_bytes=_MAX_CONFIG)
    return _info(manifest.digest, size, raw)


def check_runnable(info: ImageInfo, *, goarch: str, max_bytes: int) -> None:
    """Raise ImageInvalid, in a sentence for a person, for an image that we refuse to run."""
    if info.size > max_bytes:
        raise ImageInvalid(f"The image has {info.size} bytes; at most {max_bytes} are accepted.")
    if (info.os, info.architecture) != ("linux", goarch):
        raise ImageInvalid(f"The image is for {info.os}/{info.architecture}; linux/{goarch} was asked for.")
    if info.user.partition(":")[0] != RUN_AS:
        raise ImageInvalid(f"The image runs as user {info.user or 'root'!r}; only {RUN_AS} is accepted.")
    if not any(info.entrypoint):
        raise ImageInvalid("The image has no entrypoint, so there is nothing to start.")


def _info(digest: str, size: int, raw: bytes) -> ImageInfo:
    try:
        content: dict[str, Any] = json.loads(raw)
        config = content.get("config") or {}
        entrypoint, labels = config.get("Entrypoint") or [], config.get("Labels") or {}
        words = (content["os"], content["architecture"], config.get("User") or "", content.get("created") or "")
        if not all(isinstance(w, str) for w in (*words, *entrypoint, *labels, *labels.values())):
            raise TypeError("a field has the wrong type")
        return ImageInfo(
            digest=digest,
            size=size,
            os=words[0],
            architecture=words[1],
            user=words[2],
            entrypoint=tuple(entrypoint),
            created=words[3] or None,
            labels=dict(labels),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageInvalid(f"The image's config can't be read: {error}.") from error
