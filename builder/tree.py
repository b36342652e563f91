"""The source as a tree of plain files: which paths may be in it, and its digest.

The digest is that of ``docs/builder-protocol.md``: SHA-256 over ``<path> NUL <x or -> NUL <hex SHA-256> LF`` of each
file in byte order of the paths; the control plane computes the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from builder.outcome import Failure, Reason

DEEPEST = 64
#: Linux's own limits, in bytes.
LONGEST_PART, LONGEST_PATH = 255, 4096 - 1024


@dataclass(frozen=True)
class Content:
    """One file: its owner's execute bit and the hex SHA-256 of its content."""

    executable: bool
    sha256: str


def tree_digest(files: Mapping[str, Content]) -> str:
    """Return ``sha256:<hex>`` of a tree given by its relative paths."""
    whole = hashlib.sha256()
    for path, content in sorted((path.encode(), content) for path, content in files.items()):
        whole.update(b"%s\0%s\0%s\n" % (path, b"x" if content.executable else b"-", content.sha256.encode()))
    return f"sha256:{whole.hexdigest()}"


def plain_path(name: str) -> str:
    """Return an archive's name as a relative path without ``.``; empty for the root itself.

    Raises Failure(source_rejected) for a name that leads out of the tree or that isn't a plain UTF-8 path.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise rejected(f"A name in the source is not UTF-8: {ascii(name)[:200]}.") from None
    if name.startswith("/"):
        raise rejected(f"The source holds an absolute path: {ascii(name)[:200]}.")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise rejected(f"A name in the source holds control characters: {ascii(name)[:200]}.")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise rejected(f"The source holds a path that leads out of it: {ascii(name)[:200]}.")
    path = "/".join(parts)
    if len(parts) > DEEPEST or len(path.encode()) > LONGEST_PATH or any(len(p.encode()) > LONGEST_PART for p in parts):
        raise rejected(f"The source holds a path that is too long or too deep: {ascii(name)[:200]}.")
    return path


def rejected(message: str) -> Failure:
    """Return the failure of a source that is not safe to unpack."""
    return Failure(Reason.SOURCE_REJECTED, message)
