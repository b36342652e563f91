"""Carrying images between registries, and looking at them."""

import json
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.images import layout
from app.images.copy import Copied, copy
from app.images.errors import ImageInvalid, ImageNotFound
from app.images.inspect import check_runnable, inspect
from app.images.source import Disk, Source
from tests.images.support import (
    INDEX,
    MANIFEST,
    USER,
    Image,
    Place,
    answer,
    client,
    collected,
    cutting,
    descriptor,
    image,
    noise,
    push,
    registry,
    sha,
)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "other") as other:
        yield other


async def test_an_image_is_copied_byte_for_byte_and_once(place: Place, other: Place) -> None:
    what = image(noise(100_000))
    async with place.client() as source, other.client() as target:
        await push(source, "a/b", what, "v1")
        done = await copy(source, "a/b", what.digest, target, "x/y")
        assert done == Copied(sent=2, sent_bytes=sum(map(len, what.blobs)))
        found = await target.get_manifest("x/y", what.digest)
        assert (found.body, found.media_type) == (what.manifest, MANIFEST)
        assert await target.get_blob("x/y", sha(what.layers[0]), max_bytes=200_000) == what.layers[0]
        assert await copy(source, "a/b", what.digest, target, "x/y") == Copied(present=2)


async def test_from_this_disk(place: Place, other: Place) -> None:
    what = image(noise(3_000_000))
    async with place.client() as source, other.client() as target:
        await push(source, "a/b", what)
        assert (await copy(Disk(place.root), "a/b", what.digest, target, "a/b")).sent == 2
        assert await target.get_blob("a/b", sha(what.layers[0]), max_bytes=4_000_000) == what.layers[0]


async def test_on_one_host_blobs_are_mounted(place: Place) -> None:
    what = image()
    async with place.client() as c:
        await push(c, "a/b", what)
        assert await copy(c, "a/b", what.digest, c, "a/c") == Copied(mounted=2)
    one, two = (layout.blob_path(place.root, r, sha(what.config)) for r in ("a/b", "a/c"))
    assert one.samefile(two)


async def test_an_index_is_copied_with_its_children(place: Place, other: Place) -> None:
    one, two = image(b"one"), image(b"two")
    children = [descriptor(MANIFEST, i.manifest) for i in (one, two)]
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).encode()
    async with place.client() as source, other.client() as target:
        await push(source, "a/b", one)
        await push(source, "a/b", two)
        await source.put_manifest("a/b", "v1", INDEX, body)
        await copy(source, "a/b", sha(body), target, "a/b")
        assert (await target.get_manifest("a/b", sha(body))).media_type == INDEX
        for child in (one, two):
            assert (await target.get_manifest("a/b", child.digest)).body == child.manifest
        with pytest.raises(ImageInvalid, match="not a single image"):
            await inspect(target, "a/b", sha(body))


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_cut_on_either_side_is_survived(place: Place, other: Place, side: str) -> None:
    what = image(noise(3_000_000))
    async with place.client() as c:
        await push(c, "a/b", what)
    user, password = USER
    async with (
        cutting(place.url, down=[1_000_000] if side == "source" else []) as from_,
        cutting(other.url, up=[1_000_000] if side == "target" else []) as to,
        client(from_.url, username=user, password=password) as source,
        client(to.url, username=user, password=password) as target,
    ):
        await copy(source, "a/b", what.digest, target, "a/b")
        assert (from_ if side == "source" else to).cuts == 1
        assert await target.get_blob("a/b", sha(what.layers[0]), max_bytes=4_000_000) == what.layers[0]


async def test_what_is_missing_or_changed_is_not_copied(place: Place, other: Place) -> None:
    what = image()
    layer = layout.blob_path(place.root, "a/b", sha(what.layers[0]))
    async with place.client() as source, other.client() as target:
        await push(source, "a/b", what)
        right = layer.read_bytes()
        for wrong in (right[:-1], right + b"x", right[:-1] + b"?"):
            layer.write_bytes(wrong)
            for reader in (source, Disk(place.root)):
                with pytest.raises(ImageInvalid):
                    await copy(reader, "a/b", what.digest, target, "a/b")
        layer.unlink()
        for reader in (source, Disk(place.root)):
            with pytest.raises(ImageNotFound):
                await copy(reader, "a/b", what.digest, target, "a/b")
        with pytest.raises(ImageInvalid, match="by digest"):
            await copy(source, "a/b", "latest", target, "a/b")
        # The manifest goes last, so the target never had the image.
        assert await target.head_manifest("a/b", what.digest) is None


async def test_a_target_that_keeps_something_else_is_found_out(place: Place, other: Place) -> None:
    what = image()
    async with place.client() as source, other.client() as target:
        await push(source, "a/b", what)

        def forget(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
            asked = scope["method"] == "GET" and "/manifests/" in scope["path"]
            return answer(send, 200, body=b"{}") if asked else None

        other.meddle = forget
        with pytest.raises(ImageInvalid, match="another manifest"):
            await copy(source, "a/b", what.digest, target, "a/b")


async def test_disk_and_http_say_the_same(place: Place) -> None:
    what = image(noise(10_000))
    layer = what.layers[0]
    async with place.client() as c:
        await push(c, "a/b", what, "v1")
        sources: list[Source] = [c, Disk(place.root)]
        for source in sources:
            assert (await source.get_manifest("a/b", "v1")).body == what.manifest
            assert await source.blob_size("a/b", sha(layer)) == len(layer)
            assert await source.blob_size("a/b", sha(b"none")) is None
            assert await source.get_blob("a/b", sha(layer), max_bytes=len(layer)) == layer
            assert await collected(source.open_blob("a/b", sha(layer), offset=7)) == layer[7:]
            with pytest.raises(ImageInvalid):
                await source.get_blob("a/b", sha(layer), max_bytes=len(layer) - 1)
            with pytest.raises(ImageNotFound):
                await source.get_blob("a/b", sha(b"none"), max_bytes=1)
            with pytest.raises(ImageNotFound):
                await source.get_manifest("a/b", "v2")
        for data in (layer, what.manifest):
            layout.blob_path(place.root, "a/b", sha(data)).write_bytes(b"?" * len(data))
        for source in sources:
            with pytest.raises(ImageInvalid):
                await source.get_blob("a/b", sha(layer), max_bytes=len(layer))
            with pytest.raises(ImageInvalid):
                await source.get_manifest("a/b", what.digest)


async def test_an_image_is_read(place: Place) -> None:
    what = image(noise(10_000))
    async with place.client() as c:
        await push(c, "a/b", what)
        info = await inspect(c, "a/b", what.digest)
        assert info == await inspect(Disk(place.root), "a/b", what.digest)
    assert info.size == len(what.manifest) + sum(map(len, what.blobs))
    assert (info.os, info.architecture, info.user) == ("linux", "amd64", "65532:65532")
    assert (info.entrypoint, info.labels) == (("/app/agent",), {"k": "v"})
    assert info.created == "1970-01-01T00:00:00Z"
    check_runnable(info, goarch="amd64", max_bytes=info.size)


@pytest.mark.parametrize(
    ("config", "top", "goarch", "less", "says"),
    [
        ({}, {}, "amd64", 1, "at most"),
        ({}, {}, "arm64", 0, "linux/arm64 was asked for"),
        ({}, {"os": "windows"}, "amd64", 0, "windows/amd64"),
        ({"User": ""}, {}, "amd64", 0, "user 'root'"),
        ({"User": "0"}, {}, "amd64", 0, "user '0'"),
        ({"User": "65532x"}, {}, "amd64", 0, "user"),
        ({"User": "root:65532"}, {}, "amd64", 0, "user"),
        ({"Entrypoint": []}, {}, "amd64", 0, "no entrypoint"),
        ({"Entrypoint": None}, {}, "amd64", 0, "no entrypoint"),
        ({"Entrypoint": [""]}, {}, "amd64", 0, "no entrypoint"),
    ],
)
async def test_what_is_not_run(
    place: Place, config: dict[str, Any], top: dict[str, Any], goarch: str, less: int, says: str
) -> None:
    what = image(config=config, top=top)
    async with place.client() as c:
        await push(c, "a/b", what)
    info = await inspect(Disk(place.root), "a/b", what.digest)
    with pytest.raises(ImageInvalid, match=says):
        check_runnable(info, goarch=goarch, max_bytes=info.size - less)


@pytest.mark.parametrize(
    "top", [{"os": 7}, {"config": "x"}, {"config": {"Labels": {"k": 1}}}, {"config": {"Entrypoint": [1]}}]
)
async def test_a_config_that_is_none(place: Place, top: dict[str, Any]) -> None:
    what = image(top=top)
    async with place.client() as c:
        await push(c, "a/b", what)
    with pytest.raises(ImageInvalid, match="config"):
        await inspect(Disk(place.root), "a/b", what.digest)


async def test_an_image_that_lies_about_its_size(place: Place) -> None:
    """Our registry would not take it, others do."""
    what = image()
    lying = json.loads(what.manifest)
    lying["layers"][0]["size"] = 1
    async with place.client() as c:
        await push(c, "a/b", what)
    body = json.dumps(lying).encode()
    layout.blob_path(place.root, "a/b", sha(body)).write_bytes(body)
    index = layout.load_index(place.root, "a/b")
    assert index
    layout.save_index(place.root, "a/b", index.put(layout.Entry(MANIFEST, sha(body), len(body))))
    with pytest.raises(ImageInvalid, match="size it claims"):
        await inspect(Disk(place.root), "a/b", sha(body))


@pytest.mark.parametrize(
    "body", [b"no", b"[]", b'{"layers":[{"digest":"sha256:x","size":1}]}', b'{"layers":[{}]}', b'{"layers":7}']
)
async def test_a_manifest_that_is_none(place: Place, body: bytes) -> None:
    what = Image(body, b"", ())
    place.root.mkdir(exist_ok=True)
    layout.make_folder(layout.blob_path(place.root, "a/b", what.digest).parent)
    layout.write_file(place.root, layout.blob_path(place.root, "a/b", what.digest), body)
    layout.save_index(place.root, "a/b", layout.Index().put(layout.Entry(MANIFEST, what.digest, len(body))))
    with pytest.raises(ImageInvalid):
        await inspect(Disk(place.root), "a/b", what.digest)
