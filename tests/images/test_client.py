"""The client against a real registry that misbehaves in every way a registry does."""

import asyncio
import json
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.images.bearer import Challenge, Credential, TokenRequest, parse_challenges
from app.images.errors import ImageInvalid, ImageNotFound, RegistryDenied, RegistryUnavailable
from app.images.tokens import Scope
from app.images.wire import Wire
from tests.images.support import (
    MANIFEST,
    USER,
    Place,
    answer,
    client,
    collected,
    cutting,
    image,
    noise,
    push,
    reader,
    serving,
    sha,
)

DATA = noise(3_000_000)
DIGEST = sha(DATA)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class Sleeps:
    """Notes the waits instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_the_whole_round(place: Place, tmp_path: Path) -> None:
    what = image(DATA)
    async with place.client() as c:
        assert await push(c, "a/b", what, "v1") == what.digest
        found = await c.get_manifest("a/b", "v1")
        assert (found.digest, found.media_type, found.body) == (what.digest, MANIFEST, what.manifest)
        assert await c.head_manifest("a/b", what.digest) == what.digest
        assert await c.head_manifest("a/b", "v2") is None
        layer = what.layers[0]
        assert await c.blob_size("a/b", sha(layer)) == len(layer)
        assert await c.blob_size("a/b", DIGEST) is None
        assert await c.get_blob("a/b", sha(what.config), max_bytes=10_000) == what.config
        await c.stream_blob("a/b", sha(layer), tmp_path / "layer", size=len(layer))
        assert (tmp_path / "layer").read_bytes() == layer
        assert await collected(c.open_blob("a/b", sha(layer), offset=100)) == layer[100:]
        assert await c.mount_blob("a/c", sha(layer), "a/b")
        assert not await c.mount_blob("a/c", DIGEST, "a/b")
        assert await c.tags("a/b") == ["v1"]
        await c.delete_manifest("a/b", what.digest)
        await c.delete_manifest("a/b", what.digest)
        with pytest.raises(ImageNotFound):
            await c.get_manifest("a/b", "v1")
        with pytest.raises(ImageNotFound):
            await c.tags("a/none")
    # One token for pulls, one for pushes, one for deletes, two for the mounts.
    tokens = [path for _, path, _ in place.requests if path == "/v2/token"]
    assert len(tokens) <= 6


@pytest.mark.parametrize("chunk", [None, 1_000_000, 1])
@pytest.mark.parametrize("size", [0, 1, 2_000_001])
async def test_blobs_of_all_sizes(place: Place, size: int, chunk: int | None) -> None:
    if chunk == 1 and size > 1:
        chunk = size
    data = DATA[:size]
    async with place.client() as c:
        await c.upload_blob("a/b", sha(data), size, reader(data), chunk_bytes=chunk)
        assert await c.get_blob("a/b", sha(data), max_bytes=size) == data
        if size:
            with pytest.raises(ImageInvalid, match="more than"):
                await c.get_blob("a/b", sha(data), max_bytes=size - 1)


async def test_tags_over_several_pages(place: Place) -> None:
    what = image()
    names = [f"v{n:02}" for n in range(5)]
    async with place.client() as c:
        for name in names:
            await push(c, "a/b", what, name)

        def two_at_a_time(scope: AsgiScope, receive: Receive, send: Send) -> None:
            if scope["path"].endswith("/tags/list") and b"n=" not in scope["query_string"]:
                scope["query_string"] = b"n=2"

        place.meddle = two_at_a_time
        assert await c.tags("a/b") == names


async def test_a_credential_that_is_refused(place: Place) -> None:
    for wrong in ({"password": "no"}, {"username": None}, {"bearer": "no"}):
        async with place.client(**wrong) as c:
            with pytest.raises(RegistryDenied) as caught:
                await c.get_manifest("a/b", "v1")
        assert USER[1] not in str(caught.value)


async def test_a_scope_that_is_not_granted(place: Place) -> None:
    place.grants = (Scope("a/b", frozenset({"pull"})),)
    async with place.client() as c:
        with pytest.raises(ImageNotFound):
            await c.get_manifest("a/b", "v1")
        with pytest.raises(RegistryDenied):
            await push(c, "a/b", image(), "v1")


async def test_a_fixed_bearer_is_sent_as_it_is(place: Place) -> None:
    token = place.bearer("a/b", "pull", "push")["Authorization"].removeprefix("Bearer ")
    async with place.client(username=None, bearer=token) as c:
        await push(c, "a/b", image(), "v1")
        with pytest.raises(RegistryDenied):
            await c.get_manifest("a/c", "v1")
    assert all(path != "/v2/token" for _, path, _ in place.requests)


async def test_basic_where_the_registry_has_no_token_service(place: Place) -> None:
    what = image()
    inner = place.bearer("a/b")["Authorization"].encode()

    def basic_only(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        headers = dict(scope["headers"])
        if headers.get(b"authorization", b"").startswith(b"Basic "):
            scope["headers"] = [
                *((k, v) for k, v in scope["headers"] if k != b"authorization"),
                (b"authorization", inner),
            ]
            return None
        return answer(send, 401, {"WWW-Authenticate": 'Basic realm="x"'})

    place.meddle = basic_only
    async with place.client() as c:
        assert await c.token("a/b", "pull") is None
        await push(c, "a/b", what, "v1")
        assert (await c.get_manifest("a/b", "v1")).body == what.manifest


async def test_an_open_registry_has_no_tokens(place: Place) -> None:
    place.meddle = lambda scope, receive, send: answer(send, 200)
    async with place.client() as c:
        assert await c.token("a/b", "pull") is None


async def test_tokens_are_kept_until_shortly_before_their_end(place: Place) -> None:
    clock = Clock()
    async with place.client(clock=clock) as c:
        await push(c, "a/b", image(), "v1")
        await c.get_manifest("a/b", "v1")

        async def tokens_after(seconds: float) -> int:
            clock.now += seconds
            place.requests.clear()
            await c.get_manifest("a/b", "v1")
            return [path for _, path, _ in place.requests].count("/v2/token")

        assert await tokens_after(0) == 0
        assert await tokens_after(280) == 0
        assert await tokens_after(15) == 1


async def test_a_token_that_expires_during_a_push_is_renewed(place: Place) -> None:
    refused = 0

    def expires(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        nonlocal refused
        if (
            scope["method"] == "PATCH"
            and refused < 2
            and b"1000000" in dict(scope["headers"]).get(b"content-range", b"")
        ):
            refused += 1
            realm = f'Bearer realm="{place.url}/v2/token",service="slipway",scope="repository:a/b:pull,push"'
            return answer(send, 401, {"WWW-Authenticate": realm})
        return None

    place.meddle = expires
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA), chunk_bytes=1_000_000)
        assert await c.get_blob("a/b", DIGEST, max_bytes=len(DATA)) == DATA
    assert refused == 2
    firsts = [h for m, _, h in place.requests if m == "PATCH" and h.get("content-range", "").startswith("0-")]
    assert len(firsts) == 1


async def test_a_token_that_is_over_before_a_whole_upload(place: Place) -> None:
    clock = Clock()
    async with place.client(clock=clock) as c:
        await c.upload_blob("a/b", sha(b"x"), 1, reader(b"x"))
        # Now every token the client holds is over, though its own clock does not say so.
        later = time.time() + 3600
        place.authority.clock = lambda: later
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
        assert await c.blob_size("a/b", DIGEST) == len(DATA)


async def test_an_upload_that_is_cut_goes_on_where_it_was(place: Place) -> None:
    async with cutting(place.url) as cutter, client(cutter.url, username=USER[0], password=USER[1]) as c:
        cutter.up = [2_000_000]
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
        assert cutter.cuts == 1
        assert await c.get_blob("a/b", DIGEST, max_bytes=len(DATA)) == DATA
    sent = [(m, h.get("content-range")) for m, p, h in place.requests if m in {"PUT", "PATCH"}]
    assert sent[0] == ("PUT", None)
    assert sent[1][0] == "PATCH"
    assert sent[1][1]
    begin = int(sent[1][1].split("-")[0])
    assert 1_000_000 < begin < 2_000_000


@pytest.mark.parametrize("chunk", [None, 400_000])
async def test_an_upload_that_is_cut_again_and_again_still_ends(place: Place, chunk: int | None) -> None:
    cuts = [900_000] * 12
    async with cutting(place.url, up=cuts) as cutter, client(cutter.url, username=USER[0], password=USER[1]) as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA), chunk_bytes=chunk)
        assert cutter.cuts >= 3
        cutter.up.clear()
        assert await c.get_blob("a/b", DIGEST, max_bytes=len(DATA)) == DATA


async def test_an_upload_whose_answer_got_lost_is_done(place: Place) -> None:
    lost = 0

    async def swallow(scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def nothing(message: Any) -> None: ...

        await place.app(scope, receive, nothing)
        await answer(send, 502)

    def lose(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        nonlocal lost
        if scope["method"] == "PUT" and not lost:
            lost += 1
            return swallow(scope, receive, send)
        return None

    place.meddle = lose
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
    assert [m for m, _, _ in place.requests].count("PUT") == 1
    assert [m for m, p, _ in place.requests if p.endswith("/uploads/")].count("POST") <= 2


async def test_an_upload_that_the_registry_forgot_starts_over(place: Place) -> None:
    forgotten = 0

    def forget(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        nonlocal forgotten
        if scope["method"] == "PUT" and not forgotten:
            forgotten += 1
            for file in (place.root / "_uploads").iterdir():
                file.unlink()
            return answer(send, 404)
        return None

    place.meddle = forget
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
        assert await c.blob_size("a/b", DIGEST) == len(DATA)


async def test_a_source_that_is_not_what_it_says(place: Place) -> None:
    async with place.client() as c:
        for size in (len(DATA) + 1, len(DATA) - 1):
            with pytest.raises(ImageInvalid):
                await c.upload_blob("a/b", DIGEST, size, reader(DATA))
        with pytest.raises(ImageInvalid, match="DIGEST_INVALID"):
            await c.upload_blob("a/b", sha(b"x"), len(DATA), reader(DATA))
        assert await c.blob_size("a/b", sha(b"x")) is None


async def test_a_download_that_is_cut_goes_on_where_it_was(place: Place, tmp_path: Path) -> None:
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
    place.requests.clear()
    async with (
        cutting(place.url, down=[1_000_000]) as cutter,
        client(cutter.url, username=USER[0], password=USER[1]) as c,
    ):
        await c.stream_blob("a/b", DIGEST, tmp_path / "x", size=len(DATA))
        assert cutter.cuts == 1
    assert (tmp_path / "x").read_bytes() == DATA
    ranges = [h.get("range") for m, p, h in place.requests if "/blobs/" in p]
    assert ranges[-1]
    assert 900_000 < int(ranges[-1].removeprefix("bytes=").rstrip("-")) < 1_000_000


async def test_a_download_goes_on_where_ranges_are_unknown(place: Place) -> None:
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))

    def no_ranges(scope: AsgiScope, receive: Receive, send: Send) -> None:
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k != b"range"]

    place.meddle = no_ranges
    async with (
        cutting(place.url, down=[1_000_000]) as cutter,
        client(cutter.url, username=USER[0], password=USER[1]) as c,
    ):
        assert await collected(c.open_blob("a/b", DIGEST)) == DATA
        assert cutter.cuts == 1


async def test_a_download_that_never_comes_through_is_given_up(place: Place, tmp_path: Path) -> None:
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))
    async with cutting(place.url, down=[0] * 50) as cutter, client(cutter.url, bearer=_pull(place)) as c:
        with pytest.raises(RegistryUnavailable):
            await c.stream_blob("a/b", DIGEST, tmp_path / "x", size=len(DATA))
    assert names(tmp_path) == ["registry"]


def _pull(place: Place) -> str:
    return place.bearer("a/b", "pull")["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("change", ["truncated", "longer", "different"])
async def test_a_blob_that_is_not_what_it_should_be(place: Place, tmp_path: Path, change: str) -> None:
    wrong = {"truncated": DATA[:-1], "longer": DATA + b"x", "different": b"x" + DATA[1:]}[change]
    place.meddle = lambda scope, receive, send: answer(send, 200, body=wrong)
    async with place.client() as c:
        with pytest.raises(ImageInvalid):
            await c.stream_blob("a/b", DIGEST, tmp_path / "x", size=len(DATA))
        with pytest.raises(ImageInvalid):
            await c.get_blob("a/b", DIGEST, max_bytes=len(DATA))
        with pytest.raises(ImageInvalid):
            await c.get_manifest("a/b", DIGEST)
    assert names(tmp_path) == []


async def test_a_tag_whose_digest_header_lies(place: Place) -> None:
    place.meddle = lambda scope, receive, send: answer(send, 200, {"Docker-Content-Digest": DIGEST}, b"{}")
    async with place.client() as c:
        with pytest.raises(ImageInvalid):
            await c.get_manifest("a/b", "v1")


async def test_too_many_requests_are_waited_out(place: Place) -> None:
    sleeps, left = Sleeps(), 2

    def busy(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        nonlocal left
        if "/manifests/" in scope["path"] and left:
            left -= 1
            return answer(send, 429, {"Retry-After": "7"})
        return None

    async with place.client(sleep=sleeps) as c:
        await push(c, "a/b", image(), "v1")
        place.meddle = busy
        await c.get_manifest("a/b", "v1")
    assert sleeps.seconds == [7, 7]


@pytest.mark.parametrize(("status", "retry_after"), [(429, "3600"), (503, "3600")])
async def test_a_wait_that_is_too_long_is_left_to_the_caller(place: Place, status: int, retry_after: str) -> None:
    sleeps = Sleeps()
    place.meddle = lambda scope, receive, send: answer(send, status, {"Retry-After": retry_after})
    async with place.client(sleep=sleeps) as c:
        with pytest.raises(RegistryUnavailable) as caught:
            await c.get_manifest("a/b", "v1")
    assert caught.value.retry_after == 3600
    assert sleeps.seconds == []


async def test_errors_of_the_server_are_retried_and_then_told(place: Place) -> None:
    sleeps = Sleeps()
    place.meddle = lambda scope, receive, send: answer(
        send, 500, body=json.dumps({"errors": [{"code": "X", "message": "oh"}]}).encode()
    )
    async with place.client(sleep=sleeps) as c:
        with pytest.raises(RegistryUnavailable, match=r"500 .* X oh"):
            await c.get_manifest("a/b", "v1")
    assert len(sleeps.seconds) == 4
    assert all(0.1 <= s <= 2 for s in sleeps.seconds)
    assert len(place.requests) == 5


async def test_nobody_there() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    sleeps = Sleeps()
    async with client(f"http://127.0.0.1:{port}", sleep=sleeps) as c:
        with pytest.raises(RegistryUnavailable, match="ConnectError"):
            await c.get_manifest("a/b", "v1")
        with pytest.raises(RegistryUnavailable):
            await c.token("a/b", "pull")
    assert len(sleeps.seconds) == 8


async def test_a_redirect_to_another_host_does_not_carry_the_credential(place: Place) -> None:
    seen: list[dict[bytes, bytes]] = []

    async def store(scope: AsgiScope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"]))
        await answer(send, 200, body=DATA)

    async with serving(store) as elsewhere, place.client() as c:

        def redirect(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
            if "/blobs/" in scope["path"] and b"authorization" in dict(scope["headers"]):
                return answer(send, 307, {"Location": f"{elsewhere}/x?signature=1"})
            return None

        place.meddle = redirect
        assert await c.get_blob("a/b", DIGEST, max_bytes=len(DATA)) == DATA
    assert len(seen) == 1
    assert b"authorization" not in seen[0]
    last = place.requests[-1][2]
    assert last["authorization"].startswith("Bearer ")


async def test_a_redirect_on_the_same_host_carries_it(place: Place) -> None:
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA))

        def redirect(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
            if "/blobs/" in scope["path"] and not scope["query_string"]:
                return answer(send, 307, {"Location": scope["path"] + "?again"})
            return None

        place.meddle = redirect
        assert await c.get_blob("a/b", DIGEST, max_bytes=len(DATA)) == DATA


async def test_redirects_in_circles_end(place: Place) -> None:
    place.meddle = lambda scope, receive, send: answer(send, 302, {"Location": scope["path"]})
    async with place.client() as c:
        with pytest.raises(RegistryUnavailable, match="circles"):
            await c.get_blob("a/b", DIGEST, max_bytes=1)


def test_credentials_never_go_the_plain_way() -> None:
    def ask(realm: str, registry: str) -> TokenRequest:
        return TokenRequest.of(Challenge("bearer", {"realm": realm, "scope": "b"}), registry, "a b")

    assert (
        str(ask("https://auth.example/t?x=1", "https://r.example").url) == "https://auth.example/t?x=1&scope=a&scope=b"
    )
    assert ask("http://r.example:81/t", "http://r.example").url.port == 81
    for realm, registry in (
        ("http://r.example/t", "https://r.example"),
        ("http://evil.example/t", "http://r.example"),
        ("", "https://r.example"),
    ):
        with pytest.raises(RegistryDenied):
            ask(realm, registry)

    wire = Wire("https://r.example:5000", Credential())
    assert wire.absolute("/v2/x") == "https://r.example:5000/v2/x"
    assert wire.absolute("http://r.example/v2/x") == "https://r.example:5000/v2/x"
    assert wire.absolute("https://store.example/x") == "https://store.example/x"
    with pytest.raises(RegistryDenied, match="plain http"):
        wire.absolute("http://store.example/x")


def test_challenges_are_read() -> None:
    found = parse_challenges(
        [
            'Bearer realm="https://a/t",service="s, x", scope="repository:a:pull,push"',
            'Basic realm="x", Bearer realm=y',
            "Negotiate",
            "",
        ]
    )
    assert found == [
        Challenge("bearer", {"realm": "https://a/t", "service": "s, x", "scope": "repository:a:pull,push"}),
        Challenge("basic", {"realm": "x"}),
        Challenge("bearer", {"realm": "y"}),
        Challenge("negotiate", {}),
    ]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token":"x","expires_in":"y"}'])
async def test_a_token_service_that_gives_none(place: Place, body: bytes) -> None:
    place.meddle = lambda scope, receive, send: answer(send, 200, body=body) if scope["path"] == "/v2/token" else None
    async with place.client() as c:
        with pytest.raises(RegistryUnavailable, match="no token"):
            await c.get_manifest("a/b", "v1")


async def test_a_token_service_that_is_busy_is_asked_again(place: Place) -> None:
    left = 2

    def busy(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        nonlocal left
        if scope["path"] == "/v2/token" and left:
            left -= 1
            return answer(send, 503)
        return None

    place.meddle = busy
    async with place.client() as c:
        token = await c.token("a/b", "pull")
        assert token
        granted = place.authority.verify(token.value)
    assert granted
    assert granted.scopes == (Scope("a/b", frozenset({"pull"})),)


async def test_a_manifest_under_a_wrong_digest_is_not_even_sent(place: Place) -> None:
    async with place.client() as c:
        with pytest.raises(ImageInvalid):
            await c.put_manifest("a/b", DIGEST, MANIFEST, b"{}")
    assert place.requests == []


async def test_a_least_chunk_is_honoured(place: Place) -> None:
    async def with_least(scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"oci-chunk-min-length", b"2000000")]
            await send(message)

        await place.app(scope, receive, more)

    place.meddle = lambda scope, receive, send: with_least(scope, receive, send) if scope["method"] == "POST" else None
    async with place.client() as c:
        await c.upload_blob("a/b", DIGEST, len(DATA), reader(DATA), chunk_bytes=1000)
    assert [h["content-length"] for m, _, h in place.requests if m == "PATCH"] == ["2000000", "1000000"]
