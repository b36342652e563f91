"""What garbage collection takes and what it never takes."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from app.images import blobs, layout, manifests, uploads
from app.images.collect import Collected, collect
from app.images.errors import Fault
from tests.images.support import INDEX, MANIFEST, Image, descriptor, image, noise, sha

HOUR = timedelta(hours=1)
MAX = 10**9


def add(root: Path, repository: str, data: bytes) -> str:
    upload = uploads.start(root, repository)
    with uploads.append_to(root, repository, upload) as file:
        file.write(data)
    uploads.finish(root, repository, upload, sha(data), max_bytes=MAX)
    return sha(data)


def put(root: Path, repository: str, what: Image, tag: str | None = None) -> str:
    for data in what.blobs:
        add(root, repository, data)
    reference = tag or what.digest
    return manifests.put_manifest(root, repository, reference, what.media_type, what.manifest, max_bytes=MAX).digest


def age(root: Path, hours: float = 2) -> None:
    then = time.time() - hours * 3600
    for path in root.rglob("*"):
        os.utime(path, (then, then))


def run(root: Path, *keep: tuple[str, str], limit: int = 1000) -> Collected:
    return collect(root, set(keep), HOUR, limit)


def whole(root: Path, repository: str, what: Image) -> bool:
    found = manifests.get_manifest(root, repository, what.digest)
    return found.body == what.manifest and all(
        layout.blob_path(root, repository, sha(b)).read_bytes() == b for b in what.blobs
    )


def test_what_nobody_keeps_goes_with_its_repository(tmp_path: Path) -> None:
    put(tmp_path, "a/one", image(b"one"), "v1")
    put(tmp_path, "a/two", image(b"two"))
    age(tmp_path)
    done = run(tmp_path, ("a/two", image(b"two").digest))
    assert (done.repositories, done.manifests, done.blobs, done.complete) == (1, 1, 2, True)
    assert done.bytes > 0
    assert not (tmp_path / "a/one").exists()
    assert whole(tmp_path, "a/two", image(b"two"))
    assert run(tmp_path, ("a/two", image(b"two").digest)) == Collected()


def test_what_is_young_stays(tmp_path: Path) -> None:
    put(tmp_path, "a/one", image(b"one"))
    add(tmp_path, "a/two", b"lone blob")
    assert run(tmp_path) == Collected()
    assert whole(tmp_path, "a/one", image(b"one"))


def test_one_image_of_a_repository_goes_and_what_is_shared_stays(tmp_path: Path) -> None:
    kept = image(b"same")
    gone = image(b"same", annotations={"x": "y"})
    put(tmp_path, "a/b", kept, "v1")
    put(tmp_path, "a/b", gone, "v2")
    add(tmp_path, "a/b", b"left over")
    age(tmp_path)
    done = run(tmp_path, ("a/b", kept.digest))
    assert (done.manifests, done.blobs, done.repositories) == (1, 1, 0)
    assert whole(tmp_path, "a/b", kept)
    assert manifests.tags(tmp_path, "a/b") == ["v1"]


def test_children_and_referrers_of_what_is_kept_stay(tmp_path: Path) -> None:
    child, other = image(b"child"), image(b"other")
    put(tmp_path, "a/b", child)
    put(tmp_path, "a/b", other)
    body = b'{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s","digest":"%s","size":%d}]}' % (
        INDEX.encode(),
        MANIFEST.encode(),
        child.digest.encode(),
        len(child.manifest),
    )
    index = manifests.put_manifest(tmp_path, "a/b", "v1", INDEX, body, max_bytes=MAX).digest
    signature = image(b"signature", subject=descriptor(INDEX, body))
    second = image(b"of the signature", subject=descriptor(MANIFEST, signature.manifest))
    of_child = image(b"of the child", subject=descriptor(MANIFEST, child.manifest))
    for what in (signature, second, of_child):
        put(tmp_path, "a/b", what)
    age(tmp_path)
    assert run(tmp_path, ("a/b", index)).manifests == 1
    assert all(whole(tmp_path, "a/b", what) for what in (child, signature, second, of_child))
    with pytest.raises(Fault):
        manifests.get_manifest(tmp_path, "a/b", other.digest)


def test_a_young_manifest_keeps_its_old_blobs(tmp_path: Path) -> None:
    what = image()
    for data in what.blobs:
        add(tmp_path, "a/b", data)
    age(tmp_path)
    manifests.put_manifest(tmp_path, "a/b", "v1", MANIFEST, what.manifest, max_bytes=MAX)
    assert run(tmp_path) == Collected()
    assert whole(tmp_path, "a/b", what)


def test_asking_for_a_blob_or_mounting_it_keeps_it(tmp_path: Path) -> None:
    for name in (b"asked", b"mounted", b"put again", b"none of it"):
        add(tmp_path, "a/b", name)
    age(tmp_path)
    blobs.stat_blob(tmp_path, "a/b", sha(b"asked"))
    blobs.mount_blob(tmp_path, "a/b", "a/c", sha(b"mounted"), max_bytes=MAX)
    add(tmp_path, "a/b", b"put again")
    assert run(tmp_path).blobs == 1
    for name in (b"asked", b"mounted", b"put again"):
        blobs.stat_blob(tmp_path, "a/b", sha(name))
    blobs.stat_blob(tmp_path, "a/c", sha(b"mounted"))


def test_a_shared_blob_stays_where_it_is_kept(tmp_path: Path) -> None:
    what = image()
    put(tmp_path, "a/b", what)
    for data in what.blobs:
        blobs.mount_blob(tmp_path, "a/b", "a/c", sha(data), max_bytes=MAX)
    put(tmp_path, "a/c", what)
    age(tmp_path)
    assert run(tmp_path, ("a/c", what.digest)).repositories == 1
    assert whole(tmp_path, "a/c", what)


def test_it_goes_in_batches(tmp_path: Path) -> None:
    for n in range(4):
        put(tmp_path, f"a/{n}", image(noise(10, n)))
    age(tmp_path)
    passes = []
    for _ in range(20):
        done = run(tmp_path, limit=5)
        passes.append(done.manifests + done.blobs)
        # Whatever is still listed is whole.
        for name in layout.repositories(tmp_path):
            index = layout.load_index(tmp_path, name)
            for digest in index.entries if index else ():
                body = manifests.get_manifest(tmp_path, name, digest).body
                what = next(i for i in (image(noise(10, n)) for n in range(4)) if i.manifest == body)
                assert whole(tmp_path, name, what)
        if done.complete:
            break
    assert sum(passes) == 12
    assert max(passes) <= 5
    assert list(layout.repositories(tmp_path)) == []


def test_abandoned_uploads_go(tmp_path: Path) -> None:
    old = uploads.start(tmp_path, "a/b")
    (tmp_path / "_uploads" / "tmp-left").write_bytes(b"x")
    (tmp_path / "_uploads" / "trash-left").mkdir()
    (tmp_path / "_uploads" / "trash-left" / "x").write_bytes(b"x")
    age(tmp_path)
    new = uploads.start(tmp_path, "a/b")
    assert run(tmp_path).uploads == 3
    with pytest.raises(Fault):
        uploads.offset(tmp_path, "a/b", old)
    assert uploads.offset(tmp_path, "a/b", new) == 0


def test_what_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    for name in ("a/index", "a/manifest", "a/gone"):
        put(tmp_path, name, image())
    (tmp_path / "a/index/index.json").write_bytes(b"no")
    damaged = layout.blob_path(tmp_path, "a/manifest", image().digest)
    damaged.write_bytes(b"no")
    age(tmp_path)
    done = run(tmp_path, ("a/manifest", image().digest))
    assert done.repositories == 1
    assert [s.partition(":")[0] for s in done.skipped] == ["a/index", "a/manifest"]
    assert damaged.exists()
    assert layout.blob_path(tmp_path, "a/index", image().digest).exists()


def test_a_repository_inside_another_survives_it(tmp_path: Path) -> None:
    put(tmp_path, "a", image(b"outer"))
    put(tmp_path, "a/b", image(b"inner"))
    age(tmp_path)
    assert run(tmp_path, ("a/b", image(b"inner").digest)).repositories == 1
    assert list(layout.repositories(tmp_path)) == ["a/b"]
    assert whole(tmp_path, "a/b", image(b"inner"))
    blobs.delete_repository(tmp_path, "a/b")
    blobs.delete_repository(tmp_path, "a/b")
    assert list(layout.repositories(tmp_path)) == []
    assert list((tmp_path / "_uploads").iterdir()) == []


def test_an_empty_root(tmp_path: Path) -> None:
    assert run(tmp_path / "none") == Collected()


def test_many_repositories(tmp_path: Path) -> None:
    """Written directly: what is measured is the walk, which must not be more than linear."""
    what = image()
    keep = set()
    for n in range(600):
        folder = tmp_path / "a" / f"run-{n}"
        (folder / "blobs/sha256").mkdir(parents=True)
        for data in (*what.blobs, what.manifest):
            (folder / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
        entry = f'{{"mediaType":"{MANIFEST}","digest":"{what.digest}","size":{len(what.manifest)}}}'
        (folder / "index.json").write_text(f'{{"manifests":[{entry}]}}')
        if n % 30:
            keep.add((f"a/run-{n}", what.digest))
    age(tmp_path)
    begin = time.monotonic()
    done = collect(tmp_path, keep, HOUR, 1000)
    assert done.repositories == 20
    assert time.monotonic() - begin < 10
