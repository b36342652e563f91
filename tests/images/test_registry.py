"""What the distribution specification asks of a registry, by the routes themselves."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.images import layout
from app.images.manifests import MAX_MANIFEST
from tests.images.support import (
    CONFIG,
    INDEX,
    MANIFEST,
    Image,
    Place,
    descriptor,
    image,
    noise,
    registry,
    sha,
)

DATA = noise(5000)


async def blob(http: httpx.AsyncClient, repository: str, data: bytes) -> httpx.Response:
    return await http.post(f"/{repository}/blobs/uploads/", params={"digest": sha(data)}, content=data)


async def put(http: httpx.AsyncClient, repository: str, what: Image, reference: str | None = None) -> httpx.Response:
    for data in what.blobs:
        assert (await blob(http, repository, data)).status_code == 201
    return await put_raw(http, repository, what.manifest, reference or what.digest, what.media_type)


async def put_raw(
    http: httpx.AsyncClient, repository: str, body: bytes, reference: str, kind: str = MANIFEST
) -> httpx.Response:
    path = f"/{repository}/manifests/{reference}"
    return await http.put(path, content=body, headers={"Content-Type": kind})


def code(response: httpx.Response) -> str:
    return str(response.json()["errors"][0]["code"])


async def test_ping(place: Place) -> None:
    async with place.http("a/b") as http:
        response = await http.get("/")
    assert response.status_code == 200
    assert response.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_blob_in_one_request(place: Place, algorithm: str) -> None:
    digest = sha(DATA, algorithm)
    async with place.http("a/b") as http:
        response = await http.post("/a/b/blobs/uploads/", params={"digest": digest}, content=DATA)
        assert response.status_code == 201
        assert response.headers["docker-content-digest"] == digest
        assert response.headers["location"] == f"/v2/a/b/blobs/{digest}"
        found = await http.get(f"/a/b/blobs/{digest}")
        assert found.content == DATA
        assert found.headers["docker-content-digest"] == digest
        head = await http.head(f"/a/b/blobs/{digest}")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "5000", b"")
    assert layout.blob_path(place.root, "a/b", digest).read_bytes() == DATA


async def test_a_blob_in_chunks(place: Place) -> None:
    async with place.http("a/b") as http:
        start = await http.post("/a/b/blobs/uploads/")
        assert (start.status_code, start.headers["range"]) == (202, "0-0")
        at = place.url + start.headers["location"]
        first = await http.patch(at, content=DATA[:2000], headers={"Content-Range": "0-1999"})
        assert (first.status_code, first.headers["range"]) == (202, "0-1999")
        # Out of order, and again: refused with where to go on.
        for wrong in ("0-1999", "3000-4999", "2000-1000", "x"):
            again = await http.patch(at, content=DATA[:2000], headers={"Content-Range": wrong})
            assert (again.status_code, again.headers["range"]) == (416, "0-1999")
        status = await http.get(at)
        assert (status.status_code, status.headers["range"]) == (204, "0-1999")
        # A chunk that isn't as long as it says leaves nothing behind.
        short = await http.patch(at, content=DATA[2000:2500], headers={"Content-Range": "2000-3999"})
        assert (short.status_code, code(short)) == (400, "SIZE_INVALID")
        end = await http.put(
            at, params={"digest": sha(DATA)}, content=DATA[2000:], headers={"Content-Range": "2000-4999"}
        )
        assert end.status_code == 201
        assert (await http.get(f"/a/b/blobs/{sha(DATA)}")).content == DATA
        assert (await http.get(at)).status_code == 404


async def test_a_streamed_upload_survives_a_restart(tmp_path: Path) -> None:
    async with registry(tmp_path) as place, place.http("a/b") as http:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        await http.patch(place.url + location, content=DATA[:3000])
    async with registry(tmp_path) as place, place.http("a/b") as http:
        status = await http.get(place.url + location)
        assert status.headers["range"] == "0-2999"
        await http.patch(place.url + location, content=DATA[3000:])
        done = await http.put(place.url + location, params={"digest": sha(DATA)})
        assert done.status_code == 201
        assert (await http.get(f"/a/b/blobs/{sha(DATA)}")).content == DATA


async def test_an_upload_can_be_canceled_and_belongs_to_its_repository(place: Place) -> None:
    async with place.http("a/b") as http, place.http("a/c") as other:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        foreign = await other.get(place.url + location.replace("a/b", "a/c"))
        assert (foreign.status_code, code(foreign)) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert (await http.delete(place.url + location)).status_code == 204
        assert (await http.get(place.url + location)).status_code == 404
        assert (await http.delete(place.url + location)).status_code == 404
        assert (await http.get("/a/b/blobs/uploads/..%2f..%2fx")).status_code in (400, 404)
        assert (await http.get("/a/b/blobs/uploads/nothex")).status_code == 404
    assert list((place.root / "_uploads").iterdir()) == []


async def test_a_wrong_digest_is_refused_and_ends_the_upload(place: Place) -> None:
    async with place.http("a/b") as http:
        location = (await http.post("/a/b/blobs/uploads/")).headers["location"]
        wrong = await http.put(place.url + location, params={"digest": sha(b"other")}, content=DATA)
        assert (wrong.status_code, code(wrong)) == (400, "DIGEST_INVALID")
        assert (await http.get(place.url + location)).status_code == 404
        missing = await http.put(place.url + location, content=DATA)
        assert (missing.status_code, code(missing)) == (400, "DIGEST_INVALID")
        assert (await http.head(f"/a/b/blobs/{sha(b'other')}")).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=4000-", 206, 4000, 5000),
        ("bytes=4000-9999", 206, 4000, 5000),
        ("bytes=-10", 206, 4990, 5000),
        ("bytes=-9999", 206, 0, 5000),
        ("bytes=5000-", 416, 0, 0),
        ("bytes=10-5", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=-", 200, 0, 5000),
        ("bytes=0-1,5-6", 200, 0, 5000),
        ("lines=1-2", 200, 0, 5000),
    ],
)
async def test_ranges(place: Place, asked: str, status: int, begin: int, end: int) -> None:
    async with place.http("a/b") as http:
        await blob(http, "a/b", DATA)
        response = await http.get(f"/a/b/blobs/{sha(DATA)}", headers={"Range": asked})
    assert response.status_code == status
    if status == 416:
        assert response.headers["content-range"] == "bytes */5000"
    else:
        assert response.content == DATA[begin:end]
    if status == 206:
        assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/5000"


async def test_manifests_by_tag_and_digest_byte_for_byte(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        created = await put(http, "a/b", what, "v1")
        assert created.status_code == 201
        assert created.headers["docker-content-digest"] == what.digest
        assert created.headers["location"] == f"/v2/a/b/manifests/{what.digest}"
        for reference in ("v1", what.digest):
            found = await http.get(f"/a/b/manifests/{reference}")
            assert (found.content, found.headers["content-type"]) == (what.manifest, MANIFEST)
            head = await http.head(f"/a/b/manifests/{reference}")
            assert head.headers["content-length"] == str(len(what.manifest))
            assert head.headers["docker-content-digest"] == what.digest
    index = json.loads((place.root / "a/b/index.json").read_bytes())
    [entry] = index["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    assert json.loads((place.root / "a/b/oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


async def test_media_types_are_kept_as_they_came(place: Place) -> None:
    kind = f"{MANIFEST}; x=Y"
    what = image()
    async with place.http("a/b") as http:
        await put(http, "a/b", what)
        await put_raw(http, "a/b", what.manifest, "v1", kind)
        assert (await http.get("/a/b/manifests/v1")).headers["content-type"] == kind


async def test_a_tag_moves_and_its_old_manifest_stays(place: Place) -> None:
    one, two = image(b"one"), image(b"two")
    async with place.http("a/b") as http:
        await put(http, "a/b", one, "v1")
        await put(http, "a/b", two, "v1")
        assert (await http.get("/a/b/manifests/v1")).content == two.manifest
        assert (await http.get(f"/a/b/manifests/{one.digest}")).content == one.manifest


async def test_a_manifest_needs_what_it_references(place: Place) -> None:
    what = image()
    wrong_size = json.loads(what.manifest)
    wrong_size["layers"][0]["size"] += 1
    child = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, b"{}")]}).encode()
    async with place.http("a/b") as http, place.http("a/c") as other:
        # In another repository does not count.
        await put(other, "a/c", what)
        missing = await put_raw(http, "a/b", what.manifest, "v1")
        assert (missing.status_code, code(missing)) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert (await put(http, "a/b", what, "v1")).status_code == 201
        size = await put_raw(http, "a/b", json.dumps(wrong_size).encode(), "v2")
        assert (size.status_code, code(size)) == (400, "MANIFEST_INVALID")
        assert (await put_raw(http, "a/b", child, "v3", INDEX)).status_code == 404
        assert (await http.get("/a/b/tags/list")).json()["tags"] == ["v1"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", MANIFEST),
        (b"[]", MANIFEST),
        (b"[" * 5000, MANIFEST),
        (b'{"mediaType":"text/x"}', MANIFEST),
        (b"{}", ""),
        (b'{"layers":[{"digest":"x","size":1}]}', MANIFEST),
        (b'{"layers":[{"size":1}]}', MANIFEST),
        (b'{"layers":{"a":1}}', MANIFEST),
        (b'{"config":"x"}', MANIFEST),
        (b'{"subject":{"digest":"../x"}}', MANIFEST),
        (b'{"subject":7}', MANIFEST),
    ],
)
async def test_what_is_no_manifest_is_refused(place: Place, body: bytes, kind: str) -> None:
    async with place.http("a/b") as http:
        response = await put_raw(http, "a/b", body, "v1", kind)
    assert (response.status_code, code(response)) == (400, "MANIFEST_INVALID")


async def test_references_that_are_none(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        wrong = await put_raw(http, "a/b", what.manifest, sha(b"x"))
        assert (wrong.status_code, code(wrong)) == (400, "DIGEST_INVALID")
        assert (await http.get("/a/b/manifests/sha256:x")).status_code == 400
        assert (await http.get("/a/b/manifests/-x")).status_code == 400
        assert (await http.get("/a/b/blobs/latest")).status_code == 400
        assert (await http.get("/a/b/manifests/none")).status_code == 404
        assert (await http.post("/a/b/manifests/v1")).status_code == 405
        assert code(await http.get("/a/b")) == "UNSUPPORTED"


async def test_a_manifest_has_a_largest_size(place: Place) -> None:
    def body(size: int) -> bytes:
        start = b'{"schemaVersion":2,"x":"'
        return start + b"a" * (size - len(start) - 2) + b'"}'

    async with place.http("a/b") as http:
        assert (await put_raw(http, "a/b", body(MAX_MANIFEST), "v1")).status_code == 201
        large = await put_raw(http, "a/b", body(MAX_MANIFEST + 1), "v1")
        assert (large.status_code, code(large)) == (413, "SIZE_INVALID")


async def test_tags_are_listed_in_pages(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        gone = await http.get("/a/b/tags/list")
        assert (gone.status_code, code(gone)) == (404, "NAME_UNKNOWN")
        for tag in ("b", "A", "c", "B"):
            await put(http, "a/b", what, tag)
        assert (await http.get("/a/b/tags/list")).json() == {"name": "a/b", "tags": ["A", "B", "b", "c"]}
        page = await http.get("/a/b/tags/list", params={"n": 3})
        assert page.json()["tags"] == ["A", "B", "b"]
        rest = await http.get(place.url + page.links["next"]["url"])
        assert rest.json()["tags"] == ["c"]
        assert "next" not in rest.links
        assert (await http.get("/a/b/tags/list", params={"n": 0})).json()["tags"] == []
        assert (await http.get("/a/b/tags/list", params={"n": "x"})).status_code == 400


async def test_referrers(place: Place) -> None:
    subject = image()
    descriptor_ = descriptor(MANIFEST, subject.manifest)
    signature: dict[str, Any] = {"artifactType": "text/signature", "annotations": {"by": "us"}, "subject": descriptor_}
    one, two = image(b"sig", **signature), image(b"other", subject=descriptor_)
    async with place.http("a/b") as http:
        # The subject may come later.
        created = await put(http, "a/b", one)
        assert created.headers["oci-subject"] == subject.digest
        await put(http, "a/b", two)
        response = await http.get(f"/a/b/referrers/{subject.digest}")
        assert response.headers["content-type"] == INDEX
        found = {m["digest"]: m for m in response.json()["manifests"]}
        assert found.keys() == {one.digest, two.digest}
        assert found[one.digest]["artifactType"] == "text/signature"
        assert found[one.digest]["annotations"] == {"by": "us"}
        assert found[two.digest]["artifactType"] == CONFIG
        some = await http.get(f"/a/b/referrers/{subject.digest}", params={"artifactType": "text/signature"})
        assert [m["digest"] for m in some.json()["manifests"]] == [one.digest]
        assert some.headers["oci-filters-applied"] == "artifactType"
        await http.delete(f"/a/b/manifests/{one.digest}")
        after = await http.get(f"/a/b/referrers/{subject.digest}")
        assert [m["digest"] for m in after.json()["manifests"]] == [two.digest]
        assert (await http.get(f"/a/b/referrers/{sha(b'nobody')}")).json()["manifests"] == []


async def test_deletes(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        await put(http, "a/b", what, "v1")
        await put(http, "a/b", what, "v2")
        assert (await http.delete("/a/b/manifests/v1")).status_code == 202
        assert (await http.get("/a/b/manifests/v1")).status_code == 404
        assert (await http.get("/a/b/manifests/v2")).status_code == 200
        assert (await http.delete(f"/a/b/manifests/{what.digest}")).status_code == 202
        assert (await http.get("/a/b/manifests/v2")).status_code == 404
        assert (await http.delete(f"/a/b/manifests/{what.digest}")).status_code == 404
        digest = sha(what.layers[0])
        assert (await http.delete(f"/a/b/blobs/{digest}")).status_code == 202
        assert (await http.get(f"/a/b/blobs/{digest}")).status_code == 404
        assert (await http.delete(f"/a/b/blobs/{digest}")).status_code == 404


async def test_tags_in_the_query(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        await put(http, "a/b", what)
        path = f"/a/b/manifests/{what.digest}?tag=x&tag=y"
        tagged = await http.put(path, content=what.manifest, headers={"Content-Type": MANIFEST})
        assert tagged.headers.get_list("oci-tag") == ["x", "y"]
        assert (await http.get("/a/b/tags/list")).json()["tags"] == ["x", "y"]
        bad = await http.put(path + "&tag=../z", content=what.manifest, headers={"Content-Type": MANIFEST})
        assert bad.status_code == 400


async def test_repositories_can_lie_in_one_another(place: Place) -> None:
    outer, inner = image(b"outer"), image(b"inner")
    async with place.http("a") as http, place.http("a/b") as other:
        await put(http, "a", outer, "v1")
        await put(other, "a/b", inner, "v1")
        assert (await http.get("/a/manifests/v1")).content == outer.manifest
        assert (await other.get("/a/b/manifests/v1")).content == inner.manifest
    assert list(layout.repositories(place.root)) == ["a", "a/b"]


async def test_a_layout_made_by_others_is_read(place: Place) -> None:
    what = image()
    folder = place.root / "a/b"
    (folder / "blobs/sha256").mkdir(parents=True)
    for data in (*what.blobs, what.manifest):
        (folder / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
    entry = descriptor(MANIFEST, what.manifest, annotations={layout.REF_NAME: "v1"})
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    async with place.http("a/b") as http:
        assert (await http.get("/a/b/manifests/v1")).content == what.manifest


async def test_a_broken_index_is_an_error_not_an_empty_repository(place: Place) -> None:
    what = image()
    async with place.http("a/b") as http:
        await put(http, "a/b", what, "v1")
        (place.root / "a/b/index.json").write_bytes(b'{"manifests": [{}]}')
        assert (await http.get("/a/b/manifests/v1")).status_code == 500
        assert (await put_raw(http, "a/b", what.manifest, "v2")).status_code == 500
    assert (place.root / "a/b/index.json").read_bytes() == b'{"manifests": [{}]}'
