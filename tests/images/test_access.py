"""The door: an installation's images with the embedded registry, with an outside one, and with one that has no tokens."""

import time
from collections.abc import AsyncGenerator, Awaitable
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.images.access import Images
from app.images.errors import ImageNotFound, RegistryDenied, RegistryUnavailable
from app.images.guard import Authenticate
from app.images.inspect import check_runnable
from app.images.tokens import ACTIONS, Grants, Scope
from app.settings import Settings
from tests.images.support import USER, Place, answer, client, image, noise, push, registry, serving, sha
from tests.images.test_collect import age

KEY = b"k" * 32
TTL = timedelta(minutes=10)
IMAGE = image(noise(50_000))


class Installation:
    """Images behind a served ``/v2``; the port comes after the app, so the app is put in later."""

    def __init__(self) -> None:
        self.images: Images

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        await Starlette(routes=[Mount("/v2", self.images.asgi)])(scope, receive, send)


def settings(home: Path, url: str, **more: object) -> Settings:
    port = int(url.rsplit(":", 1)[1])
    return Settings.model_validate({"home": home, "host": "127.0.0.1", "port": port, "database_url": None, **more})


@pytest.fixture
async def outside(tmp_path: Path) -> AsyncGenerator[Place, None]:
    async with registry(tmp_path / "outside") as place:
        yield place


@pytest.fixture
async def served() -> AsyncGenerator[tuple[Installation, str], None]:
    installation = Installation()
    async with serving(installation) as url:
        yield installation, url
        await installation.images.close()


def embedded(
    served: tuple[Installation, str], home: Path, authenticate: Authenticate | None = None, **more: object
) -> Images:
    served[0].images = Images(settings(home, served[1], **more), [KEY], authenticate=authenticate)
    return served[0].images


def with_outside(served: tuple[Installation, str], home: Path, outside: Place, **more: object) -> Images:
    credential = {"registry": outside.url, "registry_username": USER[0], "registry_password": USER[1]}
    return embedded(served, home, **credential, **more)  # type: ignore[arg-type]


async def test_the_whole_way_embedded(served: tuple[Installation, str], tmp_path: Path) -> None:
    images = embedded(served, tmp_path)
    repository = images.repository_for_run("run_0123456789abcdefghijklmnop")
    assert repository == "slipway/run-0123456789abcdefghijklmnop"
    grant = await images.push_grant(repository, remote=False, ttl=TTL)
    assert (grant.registry, grant.repository) == (served[1], repository)
    assert 590 < grant.expires_at - time.time() <= 600
    assert grant.token not in repr(grant)
    async with client(grant.registry, bearer=grant.token) as builder:
        await push(builder, repository, IMAGE)
        with pytest.raises(RegistryDenied):
            await push(builder, "slipway/run-other", IMAGE)
        with pytest.raises(RegistryDenied):
            await builder.delete_manifest(repository, IMAGE.digest)
    await images.land(repository, IMAGE.digest)
    info = await images.inspect(repository, IMAGE.digest)
    check_runnable(info, goarch="amd64", max_bytes=1_000_000)
    pull = await images.pull_ref(repository, IMAGE.digest, remote=False, ttl=TTL)
    assert (pull.registry, pull.digest, pull.username) == (served[1], IMAGE.digest, "slipway")
    assert str(pull.password) not in repr(pull)
    # Any client that knows the Basic flow can use it: for this repository, to pull.
    async with client(pull.registry, username=pull.username, password=pull.password) as platform:
        assert (await platform.get_manifest(repository, pull.digest)).body == IMAGE.manifest
        with pytest.raises(RegistryDenied):
            await platform.get_manifest("slipway/run-other", "x")
        with pytest.raises(RegistryDenied):
            await push(platform, repository, image(b"else"))
    await images.delete(repository, IMAGE.digest)
    await images.delete(repository, IMAGE.digest)
    with pytest.raises(ImageNotFound):
        await images.inspect(repository, IMAGE.digest)
    await images.delete(repository)
    await images.delete(repository)
    await images.land(repository, IMAGE.digest)  # it is not to be moved, so it is not looked for either
    with pytest.raises(ImageNotFound):
        await images.inspect(repository, IMAGE.digest)


async def test_a_grant_ends(served: tuple[Installation, str], tmp_path: Path) -> None:
    images = embedded(served, tmp_path)
    push_grant = await images.push_grant("slipway/run-1", remote=False, ttl=timedelta(seconds=-1))
    async with client(served[1], bearer=push_grant.token) as builder:
        with pytest.raises(RegistryDenied):
            await push(builder, "slipway/run-1", IMAGE)
    pull = await images.pull_ref("slipway/run-1", IMAGE.digest, remote=False, ttl=timedelta(seconds=-1))
    async with client(served[1], username=pull.username, password=pull.password) as platform:
        with pytest.raises(RegistryDenied):
            await platform.get_manifest("slipway/run-1", IMAGE.digest)


async def test_others_are_asked_about(served: tuple[Installation, str], tmp_path: Path) -> None:
    async def authenticate(username: str, password: str) -> Grants | None:
        return Grants("operator", (Scope("*", ACTIONS),)) if (username, password) == ("key", "good") else None

    embedded(served, tmp_path, authenticate=authenticate)
    async with client(served[1], username="key", password="good") as c:
        await push(c, "any/thing", IMAGE, "v1")
    async with client(served[1], username="slipway", password="good") as c:
        with pytest.raises(RegistryDenied):
            await c.get_manifest("any/thing", "v1")


async def test_where_others_reach_us(served: tuple[Installation, str], tmp_path: Path) -> None:
    images = embedded(served, tmp_path)
    for verb in (
        images.push_grant("a/b", remote=True, ttl=TTL),
        images.pull_ref("a/b", sha(b""), remote=True, ttl=TTL),
    ):
        with pytest.raises(RegistryDenied, match="SLIPWAY_PUBLIC_URL"):
            await verb
    images = embedded(served, tmp_path, public_url="https://slipway.example.com")
    assert (await images.push_grant("a/b", remote=True, ttl=TTL)).registry == "https://slipway.example.com"
    images = embedded(
        served, tmp_path, public_url="https://slipway.example.com", registry_public="https://images.example.com"
    )
    assert (await images.pull_ref("a/b", sha(b""), remote=True, ttl=TTL)).registry == "https://images.example.com"
    assert (await images.pull_ref("a/b", sha(b""), remote=False, ttl=TTL)).registry == served[1]


async def test_an_outside_registry_with_a_token_service(
    served: tuple[Installation, str], tmp_path: Path, outside: Place
) -> None:
    images = with_outside(served, tmp_path, outside, registry_public="https://images.example.com")
    repository = images.repository_for_run("run_1")
    grant = await images.push_grant(repository, remote=False, ttl=TTL)
    assert grant.registry == outside.url
    # The token is the outside registry's own, and small; the operator's credential is not in it.
    granted = outside.authority.verify(grant.token)
    assert granted
    assert granted.scopes == (Scope(repository, frozenset({"pull", "push"})),)
    assert USER[1] not in repr(grant) + grant.token
    async with client(grant.registry, bearer=grant.token) as builder:
        await push(builder, repository, IMAGE)
    await images.land(repository, IMAGE.digest)
    assert (await images.inspect(repository, IMAGE.digest)).digest == IMAGE.digest
    pull = await images.pull_ref(repository, IMAGE.digest, remote=True, ttl=TTL)
    assert (pull.registry, pull.username, pull.password) == ("https://images.example.com", *USER)
    assert (await images.push_grant(repository, remote=True, ttl=TTL)).registry == "https://images.example.com"
    with pytest.raises(ImageNotFound):
        await images.land(repository, sha(b"never pushed"))
    await images.delete(repository, IMAGE.digest)
    with pytest.raises(ImageNotFound):
        await images.inspect(repository, IMAGE.digest)


async def test_an_outside_repository_is_emptied_by_its_tags(
    served: tuple[Installation, str], tmp_path: Path, outside: Place
) -> None:
    images = with_outside(served, tmp_path, outside)
    async with outside.client() as c:
        await push(c, "slipway/run-1", IMAGE, "v1")
        await push(c, "slipway/run-1", image(b"two"), "v2")
        await images.delete("slipway/run-1")
        assert await c.head_manifest("slipway/run-1", IMAGE.digest) is None
        assert await c.tags("slipway/run-1") == []
    await images.delete("slipway/run-none")


async def test_an_outside_registry_that_knows_only_basic(
    served: tuple[Installation, str], tmp_path: Path, outside: Place
) -> None:
    inner = outside.bearer("slipway/run-1")["Authorization"].encode()

    def basic_only(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None] | None:
        if dict(scope["headers"]).get(b"authorization", b"").startswith(b"Basic "):
            kept = [(k, v) for k, v in scope["headers"] if k != b"authorization"]
            scope["headers"] = [*kept, (b"authorization", inner)]
            return None
        return answer(send, 401, {"WWW-Authenticate": 'Basic realm="x"'})

    outside.meddle = basic_only
    images = with_outside(served, tmp_path, outside)
    grant = await images.push_grant("slipway/run-1", remote=False, ttl=TTL)
    assert grant.registry == served[1]
    async with client(grant.registry, bearer=grant.token) as builder:
        await push(builder, "slipway/run-1", IMAGE)
    with pytest.raises(ImageNotFound):
        await images.inspect("slipway/run-1", IMAGE.digest)
    await images.land("slipway/run-1", IMAGE.digest)
    assert (await images.inspect("slipway/run-1", IMAGE.digest)).digest == IMAGE.digest
    # What was only passing through is garbage, whatever the rows name.
    age(tmp_path / "registry")
    assert (await images.collect({("slipway/run-1", IMAGE.digest)}, timedelta(hours=1), 100)).repositories == 1
    await images.land("slipway/run-1", IMAGE.digest)
    # It may have been pushed by way of another API: that is no fault of the builder's.
    with pytest.raises(RegistryUnavailable, match="have to share the folder"):
        await images.land("slipway/run-1", sha(b"pushed elsewhere"))


async def test_an_outside_registry_that_is_down(
    served: tuple[Installation, str], tmp_path: Path, outside: Place
) -> None:
    images = with_outside(served, tmp_path, outside)
    outside.meddle = lambda scope, receive, send: answer(send, 503, {"Retry-After": "3600"})
    with pytest.raises(RegistryUnavailable):
        await images.inspect("slipway/run-1", IMAGE.digest)


async def test_what_is_kept_stays(served: tuple[Installation, str], tmp_path: Path) -> None:
    images = embedded(served, tmp_path)
    for n in (1, 2):
        grant = await images.push_grant(f"slipway/run-{n}", remote=False, ttl=TTL)
        async with client(grant.registry, bearer=grant.token) as builder:
            await push(builder, f"slipway/run-{n}", IMAGE)
    age(tmp_path / "registry")
    done = await images.collect({("slipway/run-1", IMAGE.digest)}, timedelta(hours=1), 100)
    assert done.repositories == 1
    assert (await images.inspect("slipway/run-1", IMAGE.digest)).digest == IMAGE.digest
    with pytest.raises(ImageNotFound):
        await images.inspect("slipway/run-2", IMAGE.digest)
