"""Bounds: sizes, counts, memory, a full disk."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import psutil
import pytest

from app.images import blobs, faults, layout, transfers, uploads
from app.images.errors import Fault, RegistryDenied
from tests.images.support import Place, image, noise, push, reader, registry, sha
from tests.images.test_registry import blob, code, put
from tests.support.waiting import eventually

MAX = 1_000_000


async def test_a_blob_has_a_largest_size(tmp_path: Path) -> None:
    fits, large = noise(MAX), noise(MAX + 1)
    async with registry(tmp_path, max_bytes=MAX) as place, place.http("a/b") as http:
        declared = await blob(http, "a/b", large)
        assert (declared.status_code, code(declared)) == (413, "SIZE_INVALID")
        assert "1000000" in declared.json()["errors"][0]["message"]
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        streamed = await http.patch(place.url + location, content=reader(large)(0))
        assert (streamed.status_code, code(streamed)) == (413, "SIZE_INVALID")
        # What was too much is not kept.
        assert (await http.get(place.url + location)).status_code == 404
        assert list((tmp_path / "_uploads").iterdir()) == []
        assert (await blob(http, "a/b", fits)).status_code == 201


async def test_the_client_hears_of_the_limit(tmp_path: Path) -> None:
    data = noise(8_000_000)
    async with registry(tmp_path, max_bytes=MAX) as place, place.client() as c:
        for chunk in (None, 300_000):
            with pytest.raises(RegistryDenied, match=r"413 .* SIZE_INVALID"):
                await c.upload_blob("a/b", sha(data), len(data), reader(data), chunk_bytes=chunk)


async def test_who_sends_all_before_reading_hears_of_it_too(tmp_path: Path) -> None:
    """A server that closes on what it has not read resets the connection under its answer."""
    async with registry(tmp_path, max_bytes=MAX) as place:
        url = httpx.URL(place.url)
        reader_, writer = await asyncio.open_connection(url.host, url.port)
        size, bearer = 30_000_000, place.bearer("a/b")["Authorization"]
        head = f"POST /v2/a/b/blobs/uploads/?digest={sha(b'')} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n"
        writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode())
        for _ in range(size // 100_000):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert b" 413 " in await reader_.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_repository_has_a_largest_size(tmp_path: Path) -> None:
    one, two = noise(600_000, 1), noise(600_000, 2)
    async with registry(tmp_path, max_bytes=MAX) as place, place.http("a/b") as http, place.http("a/c") as other:
        assert (await blob(http, "a/b", one)).status_code == 201
        again = await blob(http, "a/b", two)
        assert (again.status_code, code(again)) == (413, "DENIED")
        # The same blob again costs nothing, and other repositories have room of their own.
        assert (await blob(http, "a/b", one)).status_code == 201
        assert (await blob(other, "a/c", two)).status_code == 201


async def test_unfinished_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = noise(700_000)
    async with registry(tmp_path, max_bytes=MAX) as place, place.http("a/b") as http:
        answers = []
        for _ in range(4):
            location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
            answers.append((await http.patch(place.url + location, content=part)).status_code)
        assert answers == [202, 202, 413, 413]
        monkeypatch.setattr(uploads, "MAX_OPEN", 3)
        assert (await http.post("/a/b/blobs/uploads/")).status_code == 202
        assert (await http.post("/a/b/blobs/uploads/")).status_code == 429


def test_the_number_of_blobs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_FILES", 2)
    for n in range(3):
        data = noise(10, n)
        upload = uploads.start(tmp_path, "a/b")
        with uploads.append_to(tmp_path, "a/b", upload) as file:
            file.write(data)
        if n < 2:
            uploads.finish(tmp_path, "a/b", upload, sha(data), max_bytes=MAX)
        else:
            with pytest.raises(Fault, match="at most 2 blobs"):
                uploads.finish(tmp_path, "a/b", upload, sha(data), max_bytes=MAX)


async def test_a_body_that_stands_still_counts_as_cut(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 0.05)
    still = asyncio.Event()

    async def stuck() -> AsyncGenerator[bytes, None]:
        yield b"x" * 1000
        await still.wait()

    async with place.http("a/b") as http:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        request = asyncio.create_task(http.patch(place.url + location, content=stuck()))

        async def arrived() -> bool:
            return (await http.get(place.url + location)).headers["range"] == "0-999"

        _: bool = await eventually(arrived)
        still.set()
        await asyncio.gather(request, return_exceptions=True)
        assert (await http.patch(place.url + location, content=b"y")).headers["range"] == "0-1000"


async def test_a_second_writer_waits_and_is_then_sent_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "HOLD_SECONDS", 0.05)
    async with place.http("a/b") as http:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        with uploads.append_to(place.root, "a/b", location.rsplit("/", 1)[1]):
            busy = await http.patch(place.url + location, content=b"x")
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
            assert (await http.get(place.url + location)).headers["range"] == "0-0"
        assert (await http.patch(place.url + location, content=b"x")).status_code == 202


async def test_a_second_writer_gets_its_turn(place: Place) -> None:
    async with place.http("a/b") as http:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        with uploads.append_to(place.root, "a/b", location.rsplit("/", 1)[1]):
            waiting = asyncio.create_task(http.patch(place.url + location, content=b"x"))
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
        assert (await waiting).status_code == 202


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    upload = uploads.start(tmp_path, "a/b")
    with uploads.append_to(tmp_path, "a/b", upload), pytest.raises(Fault) as caught:
        uploads.append_to(tmp_path, "a/b", upload)
    assert caught.value.status == 429
    uploads.append_to(tmp_path, "a/b", upload).close()


def test_a_blob_that_cannot_be_linked_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(1000)
    upload = uploads.start(tmp_path, "a/b")
    with uploads.append_to(tmp_path, "a/b", upload) as file:
        file.write(data)
    uploads.finish(tmp_path, "a/b", upload, sha(data), max_bytes=MAX)

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    assert blobs.mount_blob(tmp_path, "a/b", "a/c", sha(data), max_bytes=MAX)
    copied = layout.blob_path(tmp_path, "a/c", sha(data))
    assert copied.read_bytes() == data
    assert not copied.samefile(layout.blob_path(tmp_path, "a/b", sha(data)))


async def test_memory_stays_bounded_both_ways(place: Place, tmp_path: Path) -> None:
    size, piece = 32 * 1024 * 1024, noise(1024 * 1024)
    data_digest = _digest_of_repeated(piece, size)

    async def source(offset: int) -> AsyncGenerator[bytes, None]:
        for _ in range(offset, size, len(piece)):
            yield piece

    process = psutil.Process()
    peak, stop = 0, asyncio.Event()

    async def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0)

    async with place.client() as c:
        await push(c, "a/warm", image(), "v1")
        before = process.memory_info().rss
        watcher = asyncio.create_task(watch())
        await c.upload_blob("a/b", data_digest, size, source)
        await c.upload_blob("a/c", data_digest, size, source, chunk_bytes=4 * 1024 * 1024)
        await c.stream_blob("a/b", data_digest, tmp_path / "x", size=size)
        stop.set()
        await watcher
    assert peak - before < 16 * 1024 * 1024
    assert (tmp_path / "x").stat().st_size == size


def _digest_of_repeated(piece: bytes, size: int) -> str:
    hash_ = hashlib.sha256()
    for _ in range(size // len(piece)):
        hash_.update(piece)
    return f"sha256:{hash_.hexdigest()}"


async def test_a_full_disk_is_told() -> None:
    full = OSError(errno.ENOSPC, "no space left")
    answer = await faults.HANDLERS[OSError](None, full)  # type: ignore[arg-type, misc]
    assert answer.status_code == 507
    with pytest.raises(PermissionError):
        await faults.HANDLERS[OSError](None, PermissionError(errno.EPERM, "x"))  # type: ignore[arg-type, misc]


async def test_what_was_put_lies_on_the_disk_in_the_standard_layout(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        assert isinstance(await put(http, "a/b", what, "v1"), httpx.Response)
    files = {str(p.relative_to(place.root / "a/b")) for p in (place.root / "a/b").rglob("*") if p.is_file()}
    assert files == {"oci-layout", "index.json"} | {f"blobs/sha256/{sha(b)[7:]}" for b in (*what.blobs, what.manifest)}
    assert list((place.root / "_uploads").iterdir()) == []
