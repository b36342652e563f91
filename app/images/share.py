"""Give an image to another repository of the embedded registry, without a copy of its bytes."""

import json
import sys
from pathlib import Path

from app.images import blobs, manifests
from app.images.errors import Fault, ImageInvalid, ImageNotFound


def share(root: Path, repository: str, digest: str, to: str) -> None:
    """Mount the image's blobs in repository ``to`` and put its manifest there. Blocks; safe to repeat.

    No bound on the target's size: what is in it was measured when it was pushed, and takes no more room here. Raises
    ImageNotFound and ImageInvalid.
    """
    try:
        found = manifests.get_manifest(root, repository, digest)
        for descriptor in manifests.references(json.loads(found.body)):
            if not blobs.mount_blob(root, repository, to, descriptor["digest"], max_bytes=sys.maxsize):
                raise ImageNotFound(f"the blob {descriptor['digest']} is not in {repository}")
        manifests.put_manifest(root, to, digest, found.entry.media_type, found.body, max_bytes=sys.maxsize)
    except Fault as fault:
        raise (ImageNotFound if fault.status == 404 else ImageInvalid)(f"{repository}: {fault.message}") from fault
