"""Manifests, tags and referrers on the embedded registry's disk. All of it blocks; every refusal is a ``Fault``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.images import layout
from app.images.blobs import check_room, open_blob, size_of
from app.images.errors import Fault
from app.images.layout import Entry, blob_path, locked
from app.images.reference import digest_of, is_digest

#: What the specification wants a registry to take at least, and most take at most.
MAX_MANIFEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """A stored manifest with its bytes."""

    entry: Entry
    body: bytes


@dataclass(frozen=True)
class Put:
    """What came of putting a manifest."""

    digest: str
    subject: str | None


def get_manifest(root: Path, repository: str, reference: str) -> Manifest:
    """Return a manifest by tag or digest."""
    index = layout.load_index(root, repository)
    entry = index.find(reference) if index else None
    if entry is None:
        raise _manifest_unknown(reference)
    try:
        with open_blob(root, repository, entry.digest) as file:
            return Manifest(entry, file.read())
    except Fault as fault:
        raise _manifest_unknown(reference) from fault


def put_manifest(
    root: Path,
    repository: str,
    reference: str,
    media_type: str | None,
    body: bytes,
    *,
    tags: tuple[str, ...] = (),
    max_bytes: int,
) -> Put:
    """Store a manifest under its digest and, when ``reference`` is one, a tag, and ``tags`` too.

    What it references must be in this repository already, of the size it says. Its ``subject`` need not be.
    """
    if len(body) > MAX_MANIFEST:
        raise Fault(413, "SIZE_INVALID", f"a manifest may have at most {MAX_MANIFEST} bytes")
    by_digest = is_digest(reference)
    digest = digest_of(body, reference if by_digest else "sha256:")
    if by_digest and digest != reference:
        raise Fault(400, "DIGEST_INVALID", f"the body's digest is {digest}")
    manifest = _parse(body, media_type)
    subject = _digest_in(manifest.get("subject"))
    kind = manifest.get("artifactType") or (manifest.get("config") or {}).get("mediaType")
    entry = Entry(
        media_type or manifest["mediaType"], digest, len(body), kind if isinstance(kind, str) else None, subject
    )
    path = blob_path(root, repository, digest)
    with locked(root, repository):
        index = layout.load_index(root, repository) or layout.Index()
        for descriptor in references(manifest):
            _check_present(root, repository, index, descriptor)
        if size_of(path) is None:
            check_room(root, repository, len(body), max_bytes)
        layout.make_folder(path.parent)
        layout.write_file(root, path, body)
        layout.save_index(root, repository, index.put(entry, *tags, *(() if by_digest else (reference,))))
    return Put(digest, subject)


def delete_manifest(root: Path, repository: str, reference: str) -> None:
    """Remove a tag, or a manifest with all its tags."""
    with locked(root, repository):
        index = layout.load_index(root, repository)
        entry = index.find(reference) if index else None
        if index is None or entry is None:
            raise _manifest_unknown(reference)
        by_digest = is_digest(reference)
        layout.save_index(root, repository, index.without(reference) if by_digest else index.untagged(reference))
        if by_digest:
            blob_path(root, repository, reference).unlink(missing_ok=True)


def tags(root: Path, repository: str) -> list[str]:
    """Return all tags in the specification's order: alphabetical whatever the case."""
    index = layout.load_index(root, repository)
    if index is None:
        raise Fault(404, "NAME_UNKNOWN", f"there is no repository {repository}")
    return sorted(index.tags, key=tag_order)


def tag_order(tag: str) -> tuple[str, str]:
    """Return the sort key of a tag."""
    return tag.lower(), tag


def referrers(root: Path, repository: str, subject: str, artifact_type: str | None) -> list[dict[str, Any]]:
    """Return the descriptors of the manifests whose subject is this digest, of one artifact type when given."""
    index = layout.load_index(root, repository) or layout.Index()
    out = []
    for entry in index.entries.values():
        if entry.subject != subject or (artifact_type and entry.artifact_type != artifact_type):
            continue
        try:
            manifest = json.loads(get_manifest(root, repository, entry.digest).body)
        except Fault:
            continue
        found = {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
        found["artifactType"] = entry.artifact_type
        found["annotations"] = manifest.get("annotations")
        out.append({k: v for k, v in found.items() if v})
    return out


def references(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the descriptors a manifest can't be used without: config, layers, children. Not the subject."""
    found = [manifest.get("config"), *(manifest.get("layers") or []), *(manifest.get("manifests") or [])]
    found += manifest.get("blobs") or []
    return [d for d in found if d]


def _manifest_unknown(reference: str) -> Fault:
    return Fault(404, "MANIFEST_UNKNOWN", f"there is no manifest {reference} in this repository")


def _parse(body: bytes, media_type: str | None) -> dict[str, Any]:
    try:
        manifest = json.loads(body)
        if not isinstance(manifest, dict):
            raise TypeError("not an object")
        if any(not is_digest(d["digest"]) or not isinstance(d["size"], int) for d in references(manifest)):
            raise ValueError("a descriptor without a good digest and size")
        inner, outer = manifest.get("mediaType"), (media_type or "").partition(";")[0].strip()
        if not isinstance(inner or outer, str) or not (inner or outer) or (inner and outer and inner != outer):
            raise ValueError("the media type is missing or not the one in the body")
        if manifest.get("subject"):
            _digest_in(manifest["subject"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Fault(400, "MANIFEST_INVALID", f"the manifest can't be read: {error}") from error
    return manifest


def _digest_in(descriptor: Any) -> str | None:
    if not descriptor:
        return None
    if not is_digest(descriptor["digest"]):
        raise ValueError("the subject's digest is not one")
    return str(descriptor["digest"])


def _check_present(root: Path, repository: str, index: layout.Index, descriptor: Mapping[str, Any]) -> None:
    digest = descriptor["digest"]
    if descriptor.get("urls") or "nondistributable" in descriptor.get("mediaType", ""):
        return
    size = size_of(blob_path(root, repository, digest))
    if size is None:
        raise Fault(404, "MANIFEST_BLOB_UNKNOWN", f"{digest} is not in this repository")
    if size != descriptor["size"]:
        raise Fault(400, "MANIFEST_INVALID", f"{digest} has {size} bytes, the manifest says {descriptor['size']}")
