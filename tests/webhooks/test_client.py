"""The way out: to the address that was checked and no other, bounded in time and size, and never further than asked."""

import asyncio
import ipaddress
import ssl
from pathlib import Path

import pytest

from app.address import Address
from app.webhooks.client import MAX_ANSWER, Client
from tests.builder.servers import certificate
from tests.support.receiver import Received, Receiver, Reply, receiver, reply

LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Names:
    """A name server that gives these answers, one after the other."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = [*answers], 0

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        return [ipaddress.ip_address(self.answers[min(self.asked, len(self.answers)) - 1])]


async def test_the_name_is_looked_up_once_and_its_checked_address_connected_to() -> None:
    # What a second look-up would give is another address, as in DNS rebinding; 127.0.0.1 stands for a public one.
    names = Names("127.0.0.1", "127.0.0.2")
    async with receiver() as it, Client(("127.0.0.1",), resolve=names) as client:
        url = it.url.replace("127.0.0.1", "hooks.example.com")
        assert (await client.post(url, {}, "{}")).status_code == 204
        assert (await client.post(url, {}, "{}")).status_code == 204
        assert (names.asked, it.connections) == (1, 1), "the connection is kept"
        assert it.got[0].headers["host"] == url.split("/")[2]
        it.hang_up()
        await asyncio.sleep(0)
        outcomes = [await client.post(url, {}, "{}") for _ in range(2)]
        assert outcomes[-1].error == "the host hooks.example.com is at an address that is not public"
        assert len(it.got) == 2


async def test_without_leave_nothing_on_loopback_is_reached() -> None:
    async with receiver() as it, Client(()) as client:
        outcome = await client.post(it.url, {}, "{}")
        assert outcome.error == "the host 127.0.0.1 is at an address that is not public"
        assert it.connections == 0


async def test_redirects_are_an_answer_like_others() -> None:
    async with receiver() as other, receiver() as it, Client(("127.0.0.1",)) as client:
        it.answer = lambda _: reply(307, location=other.url)
        outcome = await client.post(it.url, {}, "{}")
        assert (outcome.delivered, outcome.status_code, outcome.error) == (False, 307, "answered 307")
        assert other.connections == 0


async def test_a_long_answer_is_not_read() -> None:
    async with receiver() as it, Client(("127.0.0.1",)) as client:
        it.answer = lambda _: reply(200, b"x" * 50 * MAX_ANSWER)
        assert (await client.post(it.url, {}, "{}")).delivered
        assert it.connections == 1
        it.answer = lambda _: reply()
        assert (await client.post(it.url, {}, "{}")).delivered
        assert it.connections == 2, "what was left of the answer was read after all"


async def test_one_that_never_answers_is_given_up(it: Receiver) -> None:
    async def hold(_: Received) -> Reply:
        await asyncio.Event().wait()
        return reply()

    it.answer = hold
    async with Client(("127.0.0.1",), timeout=0.05) as client:
        outcome = await client.post(it.url, {}, "{}")
    assert (outcome.status_code, outcome.error) == (None, "no whole answer in 0.05 s")


async def test_one_that_hangs_up_or_speaks_no_http(it: Receiver) -> None:
    def leave(_: Received) -> Reply:
        it.hang_up()
        return reply()

    it.answer = leave
    async with Client(("127.0.0.1",)) as client:
        outcome = await client.post(it.url, {}, "{}")
        assert (outcome.status_code, outcome.delivered) == (None, False)
        assert outcome.error


@pytest.fixture
async def it():  # type: ignore[no-untyped-def]
    async with receiver() as it:
        yield it


async def test_tls_is_about_the_name_not_the_address(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)  # for localhost
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=cert)
    async with receiver(tls=server) as it, Client(("127.0.0.1",), tls=trust, resolve=Names("127.0.0.1")) as client:
        good = it.url.replace("127.0.0.1", "localhost")
        assert (await client.post(good, {}, "{}")).delivered
        outcome = await client.post(it.url.replace("127.0.0.1", "other.example.com"), {}, "{}")
        assert outcome.status_code is None
        assert "certificate" in (outcome.error or "").lower()
        assert len(it.got) == 1
