"""The guard: which addresses may be connected to, for the app's and for the builder's alike, and which URLs are taken."""

import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest

from app import address
from app.address import AddressError, check_url, look_up
from builder import address as builder_address
from tests.support.problems import problem
from tests.support.world import World, world

PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]
INSIDE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "169.254.169.254", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
]  # fmt: skip


@pytest.mark.parametrize("guard", [address.is_public, builder_address.is_public])
@pytest.mark.parametrize(("text", "public"), [*((a, True) for a in PUBLIC), *((a, False) for a in INSIDE)])
def test_both_guards_know_what_is_public(guard: Callable[[address.Address], bool], text: str, public: bool) -> None:
    assert guard(ipaddress.ip_address(text)) is public


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/x?token=a", "https://hooks.example.com:8443/", "https://1.1.1.1/", "https://[2606:4700::1111]/",
        "https://intra/", "http://intra:8080/x", "http://10.1.2.3/", "https://10.255.0.1/", "https://EXAMPLE.com./",
    ],
)  # fmt: skip
def test_urls_that_are_taken(url: str) -> None:
    check_url(url, ["intra", "10.0.0.0/8"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example.com/", "must be https"), ("ftp://intra/", "must be https"), ("hooks.example.com", "has no host"),
        ("https://", "has no host"), ("https://u:p@example.com/", "has a user"), ("https://example.com/#x", "fragment"),
        ("https://exämple.com/", "escaped"), ("https://example.com/a b", "escaped"), ("https://example.com\\@intra/", "escaped"),
        ("https://127.0.0.1/", "not public"), ("https://[::1]/", "not public"), ("https://169.254.169.254/", "not public"),
        ("https://[::ffff:127.0.0.1]/", "not public"), ("https://2130706433/", "has no host"), ("https://0x7f.1/", "has no host"),
        ("https://017700000001/", "has no host"), ("https://a.b:99999/", "is not a URL"), ("https://[::1/", "is not a URL"),
        ("http://11.0.0.1/", "must be https"),
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        check_url(url, ["intra", "10.0.0.0/8"])


async def test_one_address_that_is_not_public_refuses_the_name() -> None:
    async def resolve(host: str, port: int) -> list[address.Address]:
        return [ipaddress.ip_address(a) for a in ("1.1.1.1", "10.0.0.7")]

    assert len(await look_up("Named.", 443, ["named"], resolve)) == 2
    assert len(await look_up("other", 443, ["10.0.0.0/24"], resolve)) == 2
    with pytest.raises(AddressError, match="the host other is at an address that is not public") as refused:
        await look_up("other", 443, [], resolve)
    assert "10.0.0.7" not in str(refused.value)


async def test_a_name_that_leads_nowhere() -> None:
    async def resolve(host: str, port: int) -> list[address.Address]:
        raise OSError("no such name")

    with pytest.raises(AddressError, match="could not be looked up"):
        await look_up("nowhere.example", 443, [], resolve)


async def test_a_git_source_at_an_inside_address_is_refused_at_once(database_url: str, tmp_path: Path) -> None:
    async def send(here: World, url: str) -> int:
        body = here.order("echo") | {"source": {"kind": "git", "url": url}}
        answer = await here.http.post("/v1/builds", json=body)
        if answer.status_code == 422:
            found = problem(answer, 422, "invalid_request")
            assert found["errors"][0]["field"] == "source.url"
        return answer.status_code

    async with world(database_url, tmp_path / "home", allow_hosts=("10.0.0.0/8",)) as here:
        urls = ("https://127.0.0.1/x", "https://169.254.169.254/x", "https://10.0.0.1/x", "https://git.example.com/x")
        assert [await send(here, url) for url in urls] == [422, 422, 202, 202]
