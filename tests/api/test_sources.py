"""Archives sent ahead: the same tree has the same digest, and nothing unsafe is kept."""

import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.builds import archives
from app.errors import Refusal
from app.models import Build
from app.settings import Settings
from tests.support.platform import NAME
from tests.support.world import FILES, World, files_digest, world

Entry = tuple[str, bytes | tarfile.TarInfo]


def info(name: str, kind: bytes, target: str = "", pax: dict[str, str] | None = None) -> tarfile.TarInfo:
    it = tarfile.TarInfo(name)
    it.type, it.linkname, it.pax_headers = kind, target, pax or {}
    return it


def sparse(size: int) -> tarfile.TarInfo:
    """Return a file that is all hole: zeros without an end, out of nothing."""
    return info("sparse", tarfile.REGTYPE, pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(size)})


def archive(entries: Iterable[Entry], *, mode: int = 0o644, **how: Any) -> bytes:
    """Return a gzipped tar of these files and bare entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", **how) as tar:
        for name, content in entries:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            it = tarfile.TarInfo(name)
            it.size, it.mode = len(content), mode
            tar.addfile(it, io.BytesIO(content))
    return out.getvalue()


PLAIN = [(name, text.encode()) for name, text in FILES.items()]


async def send(here: World, body: bytes | AsyncIterator[bytes]) -> httpx.Response:
    return await here.http.post("/v1/sources", content=body, headers={"Content-Type": "application/gzip"})


async def kept(here: World) -> int:
    return len(await here.sql("select 1 from source"))


async def test_an_upload_has_the_digest_of_the_same_files_inline(here: World) -> None:
    answer = await send(here, archive(PLAIN))
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == files_digest(FILES)
    assert answer.json()["files"] == 2
    inline = await here.submit()
    assert inline.source["digest"] == answer.json()["digest"]
    body = {"source": {"kind": "upload", "digest": files_digest(FILES)}, "platform": NAME}
    build = await here.send(body)
    assert build.source == {"kind": "archive", "digest": files_digest(FILES)}
    assert await kept(here) == 1


async def test_a_builder_gets_what_was_uploaded(here: World) -> None:
    large = [("noise.bin", os.urandom(3 * 1024 * 1024)), *PLAIN]
    sent = archive(large)
    digest = (await send(here, sent)).json()["digest"]
    build = await here.send({"source": {"kind": "upload", "digest": digest}, "platform": NAME})
    await here.jobs()
    builder = await here.builder(await here.one(Build, id=build.id))
    await builder.claim()
    assert await builder.source() == sent
    assert len(await here.sql("select 1 from source_chunk")) > 1


async def test_order_folders_times_and_packing_don_t_count_but_the_exec_bit_does(here: World) -> None:
    folder = [("d", info("d", tarfile.DIRTYPE)), (".", info("./", tarfile.DIRTYPE))]
    same = [
        archive(PLAIN), archive(PLAIN[::-1]), archive([*folder, *PLAIN]), archive(PLAIN, compresslevel=1),
        archive(PLAIN, mode=0o600), archive([("./" + n, c) for n, c in PLAIN]), archive(PLAIN, format=tarfile.GNU_FORMAT),
    ]  # fmt: skip
    digests = {(await send(here, body)).json()["digest"] for body in same}
    assert digests == {files_digest(FILES)}
    assert await kept(here) == 1
    assert (await send(here, archive(PLAIN, mode=0o755))).json()["digest"] not in digests


UNSAFE: dict[str, list[Entry]] = {
    "up": [("../a", b"")],
    "up in the middle": [("a/../../b", b"")],
    "absolute": [("/etc/passwd", b"")],
    "backslash": [("a\\b", b"")],
    "symlink": [("a", info("a", tarfile.SYMTYPE, "/etc"))],
    "hard link": [("a", b""), ("b", info("b", tarfile.LNKTYPE, "a"))],
    "device": [("a", info("a", tarfile.CHRTYPE))],
    "pipe": [("a", info("a", tarfile.FIFOTYPE))],
    "twice": [("a", b"1"), ("a", b"2")],
    "twice by another name": [("a", b"1"), ("./a", b"2")],
    "file and folder": [("a", b""), ("a/b", b"")],
    "folder and file": [("a", info("a", tarfile.DIRTYPE)), ("a", b"")],
    "a long name": [("a" * 2000, b"")],
    "no plain path": [("a//b", b"")],
    "no UTF-8": [("a\udcff", b"")],
    "a control character": [("a\nb", b"")],
    "a long part": [("a" * 300, b"")],
    "too deep": [("a/" * 64 + "b", b"")],
    "sparse": [("a", sparse(10**18))],
    "a header as large as a disk": [
        ("a", b""),
        ("b", info("b", tarfile.REGTYPE, pax={"comment": os.urandom(2_000_000).hex()})),
    ],
}


async def test_an_unsafe_archive_is_refused(here: World) -> None:
    for what, entries in UNSAFE.items():
        answer = await send(here, archive(entries))
        assert answer.status_code == 422, (what, answer.text)
        assert answer.json()["reason"] == "source_rejected", what
    assert await kept(here) == 0


BROKEN = {
    "empty": b"", "no gzip": b"plain text", "no tar": gzip.compress(b"plain text" * 100),
    "cut": archive(PLAIN)[:-20], "cut early": archive(PLAIN)[:40], "no files": archive([]),
    "only a folder": archive([("d", info("d", tarfile.DIRTYPE))]), "a plain tar": gzip.decompress(archive(PLAIN)),
    "a bad sum": archive(PLAIN)[:-8] + b"\0\0\0\0" + archive(PLAIN)[-4:],
}  # fmt: skip


async def test_a_broken_archive_is_refused(here: World) -> None:
    for what, body in BROKEN.items():
        answer = await send(here, body)
        assert answer.status_code == 422, (what, answer.text)
        assert answer.json()["reason"] == "source_invalid", what
    assert await kept(here) == 0


def test_a_path_as_long_as_a_body_costs_nothing() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Refusal):
            archives.pack_files({"a/" * 4000 + "b": ""}, Settings())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


async def test_bombs_are_stopped_on_the_way(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path, max_unpacked_bytes=8 * 1024 * 1024, max_source_files=20) as here:
        bomb = archive([("zeros", b"\0" * 4 * 1024 * 1024)])
        answer = await send(here, bomb)
        assert (answer.status_code, answer.json()["reason"]) == (422, "source_rejected")
        assert "times its size" in answer.json()["detail"]
        tail = archive(PLAIN) + gzip.compress(b"\0" * 4 * 1024 * 1024)
        assert (await send(here, tail)).status_code == 422
        large = archive([(f"r{n}", os.urandom(1024 * 1024)) for n in range(9)])
        answer = await send(here, large)
        assert (answer.status_code, answer.json()["reason"]) == (413, "source_rejected")
        many = archive([(f"f{n}", b"") for n in range(21)])
        assert (await send(here, many)).status_code == 422
        assert (await send(here, archive([(f"f{n}", b"") for n in range(20)]))).status_code == 201
        folders = [(f"d{n}", info(f"d{n}", tarfile.DIRTYPE)) for n in range(21)]
        assert (await send(here, archive([*folders, *PLAIN]))).status_code == 422
        deep = archive([(f"{n}/{'a/' * 10}f", b"") for n in range(3)])
        assert (await send(here, deep)).status_code == 422, "its folders are too many"
        again = [("d", info("d", tarfile.DIRTYPE))] * 41
        assert (await send(here, archive([*again, *PLAIN]))).status_code == 422
        assert await kept(here) == 1


async def test_too_large_is_said_while_it_still_comes(database_url: str, tmp_path: Path) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield os.urandom(256 * 1024)

    async with world(database_url, tmp_path, max_source_bytes=1024 * 1024) as here:
        answer = await send(here, endless())
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
        assert pieces <= 6


async def test_two_projects_keep_the_same_source_apart(here: World) -> None:
    _, other = await here.project("acme")
    async with other:
        await send(here, archive(PLAIN))
        assert (await other.post("/v1/sources", content=archive(PLAIN))).status_code == 201
        assert await kept(here) == 2
