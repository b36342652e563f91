"""Names of images: the grammar of repositories, tags and digests, and ``host/repository@digest``.

The expressions are those of the OCI distribution specification 1.1 ("Pulling manifests") and of the image
specification's descriptors; of the digest algorithms the two registered ones are taken.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from app.images.errors import ReferenceInvalid

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")

#: The specification leaves the length open; 255 is what other registries take and fits any file system.
MAX_REPOSITORY = 255


class Hash(Protocol):
    """The part of a ``hashlib`` object that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take more bytes in."""
        ...

    def hexdigest(self) -> str:
        """Return the digest of all so far."""
        ...


@dataclass(frozen=True)
class Reference:
    """An image by digest: ``host`` may hold a port, ``repository`` and ``digest`` are well formed."""

    host: str
    repository: str
    digest: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}@{self.digest}"


def is_repository(name: str) -> bool:
    """Tell whether ``name`` is a repository name, such as ``slipway/run-1``."""
    return len(name) <= MAX_REPOSITORY and _REPOSITORY.fullmatch(name) is not None


def is_tag(text: str) -> bool:
    """Tell whether ``text`` is a tag."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is ``sha256:…`` or ``sha512:…`` in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def check_repository(name: str) -> str:
    """Return ``name`` when it is a repository name, else raise ReferenceInvalid."""
    if not is_repository(name):
        raise ReferenceInvalid(f"{name[:300]!r} is not a repository name")
    return name


def check_digest(text: str) -> str:
    """Return ``text`` when it is a digest, else raise ReferenceInvalid."""
    if not is_digest(text):
        raise ReferenceInvalid(f"{text[:200]!r} is not a sha256 or sha512 digest")
    return text


def check_reference(text: str) -> str:
    """Return ``text`` when it is a tag or a digest, else raise ReferenceInvalid."""
    if not (is_digest(text) or is_tag(text)):
        raise ReferenceInvalid(f"{text[:200]!r} is neither a tag nor a digest")
    return text


def parse_reference(text: str) -> Reference:
    """Split ``host/repository@digest``; raise ReferenceInvalid for anything else.

    The host is required, so the first part needs a dot, a colon or to be ``localhost``, as in Docker's own rule.
    """
    name, _, digest = text.rpartition("@")
    host, _, repository = name.partition("/")
    named = "." in host or ":" in host or host == "localhost"
    if not (named and _HOST.fullmatch(host) and is_repository(repository) and is_digest(digest)):
        raise ReferenceInvalid(f"{text[:400]!r} is not host/repository@digest")
    return Reference(host, repository, digest)


def new_hash(digest: str) -> Hash:
    """Return an empty hash of the algorithm that a well-formed ``digest`` names."""
    return hashlib.new(digest.partition(":")[0])


def digest_of(data: bytes, like: str = "sha256:") -> str:
    """Return the digest of ``data``, by the algorithm that ``like`` begins with."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
