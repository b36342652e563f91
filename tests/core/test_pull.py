"""What platforms pull with: a credential of one service on one platform, which lasts as long as both and reads one repository."""

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app import jobs
from app.images.client import Registry
from app.images.errors import ImageNotFound, RegistryDenied
from app.models import PullCredential
from app.platforms.base import ImageRef, Traits
from app.secrets import make_keys, parse_keys
from tests.support.platform import NAME, TRAITS
from tests.support.world import API, KEYS, World, world

REMOTE = dataclasses.replace(TRAITS, remote=True)
SET: dict[str, Any] = {"public_url": API, "builder_image": "images.example.com/builder@sha256:" + "b" * 64}
OUTSIDE: dict[str, Any] = {
    "registry": "https://images.example.com",
    "registry_username": "ci",
    "registry_password": SecretStr("push"),
}


@pytest.fixture
async def far(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A control plane whose platform is on other machines and pulls by itself."""
    async with world(database_url, tmp_path / "home", traits=REMOTE, **SET) as it:
        yield it


async def given(far: World, service: str) -> ImageRef:
    """Return the image as the platform was told it for the live release."""
    return far.unit(await far.live(service)).spec.image


def puller(far: World, image: ImageRef, password: str | None = None) -> Registry:
    """Return a client that has what the platform was given."""
    transport = httpx.ASGITransport(far.app)
    return Registry(image.registry, username=image.username, password=password or image.password, transport=transport)


async def pull(far: World, image: ImageRef, **changes: str) -> bool:
    """Pull the image with all it is made of, as a platform does; tell whether the registry lets it."""
    wanted = dataclasses.replace(image, **changes)
    async with puller(far, wanted) as client:
        try:
            manifest = json.loads((await client.get_manifest(wanted.repository, wanted.digest)).body)
            for part in (manifest["config"], *manifest["layers"]):
                await client.get_blob(wanted.repository, part["digest"], max_bytes=1 << 20)
        except RegistryDenied:
            return False
    return True


def later(far: World, monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the registry's clock be ahead: everything that ends has ended."""
    authority = far.context.images._authority  # the clock is its injected one
    monkeypatch.setattr(authority, "clock", lambda: time.time() + by.total_seconds())


async def test_a_platform_pulls_weeks_later_all_releases_and_no_other_service(
    far: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.deployed("echo", env={"V": "1"})
    first = await given(far, "echo")
    build = await far.submit("echo", env={"V": "2"})
    await far.jobs()
    await (await far.builder(build)).finish(layer=b"two")
    await far.hurry()
    second = await given(far, "echo")
    await far.deployed("other")
    other = await given(far, "other")
    service = await far.service("echo")
    assert first.repository == f"slipway/{service.id.replace('_', '-')}" != other.repository
    assert first.digest != second.digest
    assert (first.username, first.password) == (second.username, second.password), "one for all releases"
    later(far, monkeypatch, timedelta(days=60))
    assert [await pull(far, i) for i in (first, second, other)] == [True, True, True]
    assert not await pull(far, other, username=str(first.username), password=str(first.password))
    assert not await pull(far, first, password="guessed")
    assert not await pull(far, first, username=str(other.username))
    async with puller(far, first) as client:
        with pytest.raises(RegistryDenied):
            await client.put_manifest(first.repository, "v1", "application/vnd.oci.image.manifest.v1+json", b"{}")
        with pytest.raises(RegistryDenied):
            await client.delete_manifest(first.repository, first.digest)


async def test_a_deleted_service_s_credential_is_worth_nothing_at_once(far: World) -> None:
    await far.deployed("echo")
    image = await given(far, "echo")
    assert await pull(far, image)
    await far.http.delete("/v1/services/echo")
    assert not await pull(far, image)
    await far.jobs()
    assert await far.rows(PullCredential) == []


async def test_the_collection_leaves_what_may_be_pulled_and_takes_the_rest(
    far: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.deployed("echo")
    image = await given(far, "echo")
    monkeypatch.setattr(jobs, "UNNAMED_IMAGES", timedelta(days=-1))  # all is old
    await jobs.collect_images(far.context)
    assert await pull(far, image)
    await far.http.delete("/v1/services/echo")
    await far.jobs()
    await jobs.collect_images(far.context)
    with pytest.raises(ImageNotFound):
        await far.context.images.inspect(image.repository, image.digest)


async def test_a_new_key_makes_a_new_credential_and_the_old_one_goes_with_its_key(far: World) -> None:
    _, service, release = await far.deployed("echo")
    before = await given(far, "echo")
    keys = make_keys()
    assert await pull(far, before)
    for ring, works in ((f"{keys},{KEYS}", True), (keys, False)):
        home, more = far.context.settings.home, {**SET, "secret_keys": SecretStr(ring)}
        async with world(far.database_url, home, yard=far.yard, traits=REMOTE, **more) as it:
            assert await pull(it, before) is works
            await it.http.post("/v1/services/echo/releases", json={"artifact_id": release.artifact_id})
            await it.hurry()
            after = await given(it, "echo")
            assert after.username != before.username
            assert await pull(it, after)
    assert {c.key_id for c in await far.rows(PullCredential, service_id=service.id)} == set(
        parse_keys(f"{keys},{KEYS}").keys
    )


async def test_what_pulls_no_more_after_its_deploy_gets_a_token_that_ends(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.replace(REMOTE, own_registry="registry.example.com")
    async with world(database_url, tmp_path / "home", traits=own, **SET) as it:
        await it.deployed("echo")
        image = await given(it, "echo")
        assert image.repository.startswith("slipway/run-")
        assert await pull(it, image)
        later(it, monkeypatch, timedelta(days=1))
        assert not await pull(it, image)
        assert await it.rows(PullCredential) == []


@pytest.mark.parametrize(
    ("more", "traits", "said"),
    [
        ({}, REMOTE, "SLIPWAY_REGISTRY_PULL_USERNAME"),
        ({"registry_pull_username": "ro"}, REMOTE, "SLIPWAY_REGISTRY_PULL_PASSWORD"),
        ({"registry_pull_username": "ro", "registry_pull_password": SecretStr("r")}, REMOTE, None),
        ({"registry_username": None}, REMOTE, None),
        ({}, dataclasses.replace(REMOTE, own_registry="registry.example.com"), None),
        ({}, dataclasses.replace(REMOTE, private_registry=False), "SLIPWAY_YARD__PLAN"),
    ],
)
async def test_a_platform_that_could_not_pull_is_refused_at_submit(
    database_url: str, tmp_path: Path, more: dict[str, Any], traits: Traits, said: str | None
) -> None:
    async with world(database_url, tmp_path / "home", traits=traits, **{**SET, **OUTSIDE, **more}) as it:
        answer = await it.http.post("/v1/builds", json=it.order("echo"))
        assert answer.status_code == (202 if said is None else 422), answer.text
        if said is not None:
            assert said in answer.text
            assert (await it.http.post("/v1/builds", json=it.order())).status_code == 202, "nothing shall run there"
        if more.get("registry_pull_password"):
            pull = it.context.images.lasting_pull("a/b", "sha256:" + "0" * 64)
            assert (pull.username, pull.password) == ("ro", "r")
            assert it.context.catalog.entries[NAME].traits.pulls_itself


async def test_the_pushing_credential_is_never_given_away(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path / "home", traits=REMOTE, **SET, **OUTSIDE) as it:
        with pytest.raises(RegistryDenied, match="SLIPWAY_REGISTRY_PULL_USERNAME"):
            it.context.images.lasting_pull("a/b", "sha256:" + "0" * 64)
