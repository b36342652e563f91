"""Many writers: tasks of one process, several processes, a collection in between."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from app.images import layout, manifests
from app.images.collect import collect
from tests.images.support import Place, image, noise, push, registry, sha
from tests.images.test_collect import HOUR, age, put, whole

PUSHER = """
import sys
from pathlib import Path
from tests.images.test_collect import put
from tests.images.support import image

root, who = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for n in range(8):
    put(root, "a/b", image(f"{who}-{n}".encode()), f"{who}-{n}")
    put(root, "a/b", image(b"same"), "same")
"""


def test_two_processes_lose_no_entry_of_the_index(tmp_path: Path) -> None:
    base = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUSHER, str(tmp_path), who],
            cwd=base,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(base)},
        )
        for who in ("one", "two")
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    # Both are past their imports; now they go at the same time.
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert sorted(manifests.tags(tmp_path, "a/b")) == sorted(
        [*(f"{w}-{n}" for w in ("one", "two") for n in range(8)), "same"]
    )
    for who in ("one", "two"):
        assert all(whole(tmp_path, "a/b", image(f"{who}-{n}".encode())) for n in range(8))


async def test_two_registries_over_one_folder_lose_nothing(tmp_path: Path) -> None:
    async with registry(tmp_path) as one, registry(tmp_path) as two, one.client() as c1, two.client() as c2:
        jobs = [push(c, "a/b", image(noise(1000, n)), f"v{n}") for n in range(8) for c in (c1, c2)]
        jobs += [push(c, "a/b", image(noise(1000, n)), "latest") for n in range(4) for c in (c1, c2)]
        await asyncio.gather(*jobs)
        assert await c1.tags("a/b") == ["latest", *(f"v{n}" for n in range(8))]
        assert await c2.get_blob("a/b", sha(image(noise(1000, 3)).config), max_bytes=10_000)
    index = json.loads((tmp_path / "a/b/index.json").read_bytes())
    assert len(index["manifests"]) == 9
    assert list((tmp_path / "_uploads").iterdir()) == []


async def test_pushes_while_garbage_is_collected(place: Place) -> None:
    """Each push goes over old left-overs of the same blobs, which the collection is just about to take."""
    stop = threading.Event()
    passes = 0

    def collecting() -> None:
        nonlocal passes
        while not stop.is_set():
            collect(place.root, set(), HOUR, 1000)
            passes += 1

    thread = asyncio.create_task(asyncio.to_thread(collecting))
    try:
        async with place.client() as c:
            for n in range(15):
                what = image(noise(1000, n))
                for repository in ("a/b", "a/c"):
                    put(place.root, repository, what)
                await asyncio.to_thread(age, place.root) if n % 3 else None
                await push(c, "a/b", what, f"v{n}")
                found = await c.get_manifest("a/b", f"v{n}")
                assert found.body == what.manifest
                assert whole(place.root, "a/b", what)
    finally:
        stop.set()
        await thread
    assert passes > 1


async def test_a_push_that_skips_blobs_it_was_told_of_is_safe(place: Place) -> None:
    """HEAD says a blob is there, a collection runs, the manifest comes: all is still there."""
    what = image()
    put(place.root, "a/b", what)
    async with place.client() as c:
        await c.delete_manifest("a/b", what.digest)
        age(place.root)
        for blob in what.blobs:
            assert await c.blob_size("a/b", sha(blob)) == len(blob)
        assert collect(place.root, set(), HOUR, 1000).blobs == 0
        await c.put_manifest("a/b", "v1", what.media_type, what.manifest)
    assert whole(place.root, "a/b", what)


async def test_a_manifest_that_was_asked_for_is_safe(place: Place) -> None:
    what = image()
    put(place.root, "a/b", what)
    age(place.root)
    async with place.client() as c:
        assert await c.head_manifest("a/b", what.digest) == what.digest
    assert collect(place.root, set(), HOUR, 1000).manifests == 0
    assert whole(place.root, "a/b", what)


def test_a_collection_waits_for_who_holds_the_repository(tmp_path: Path) -> None:
    put(tmp_path, "a/b", image())
    age(tmp_path)
    done = threading.Event()

    def collecting() -> None:
        collect(tmp_path, set(), timedelta(hours=1), 1000)
        done.set()

    thread = threading.Thread(target=collecting)
    with layout.locked(tmp_path, "a/b", shared=True):
        thread.start()
        assert not done.wait(0.2)
        # Wanted again while it waits.
        now = time.time()
        for digest, _ in layout.blob_files(tmp_path, "a/b"):
            os.utime(layout.blob_path(tmp_path, "a/b", digest), (now, now))
    thread.join(10)
    assert done.is_set()
    assert whole(tmp_path, "a/b", image())


def test_readers_share_a_lock(tmp_path: Path) -> None:
    with layout.locked(tmp_path, "a/b", shared=True), layout.locked(tmp_path, "a/b", shared=True):
        pass
