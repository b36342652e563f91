"""Upstreams behind a platform's edge: asked by their own name, over TLS that is verified for that name."""

import asyncio
import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.platforms.address import connect_to, own_name, request_for
from app.platforms.base import Address
from tests.gateway.support import Handler, Sleeper, Upstream, connected, gateway, problem_of, replying, upstream

NAME = "p1--agent--acct.localhost"


def contexts(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context with a fresh certificate for this name, and a client's that trusts nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def named(it: Upstream, scheme: str = "https", name: str = NAME) -> Sleeper:
    return Sleeper(Address(url=f"{scheme}://{name}:{it.port}", instance_id="one"))


async def test_a_named_upstream_is_asked_by_its_own_name() -> None:
    async with upstream(replying()) as a, gateway(a=named(a, "http")) as server, connected(server.port) as client:
        client.get("a.localhost")
        assert (await client.answer()).body == b"ok"
        assert ("host", f"{NAME}:{a.port}") in a.fields()
        assert ("x-forwarded-host", "a.localhost") in a.fields()


async def test_an_instance_s_own_address_gets_the_client_s_host() -> None:
    async with upstream(replying()) as a, gateway(a=a) as server, connected(server.port) as client:
        client.get("a.localhost")
        await client.answer()
        assert ("host", "a.localhost") in a.fields()


async def test_tls_carries_requests_and_is_kept_for_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = contexts(tmp_path, NAME)
    async with (
        upstream(replying(b"x" * 300_000), tls=theirs) as a,
        gateway(tls=ours, a=named(a)) as server,
        connected(server.port) as client,
    ):
        for _ in range(2):
            client.get("a.localhost")
            assert (await client.answer()).body == b"x" * 300_000
        assert a.connections == 1
        a.hang_up()
        client.get("a.localhost")
        assert (await client.answer()).status == 200
    assert caplog.records == []


async def test_a_certificate_of_another_name_is_not_taken(tmp_path: Path) -> None:
    theirs, ours = contexts(tmp_path, "other.localhost")
    async with upstream(replying(), tls=theirs) as a:
        service = named(a)
        async with gateway(tls=ours, a=service) as server, connected(server.port) as client:
            client.get("a.localhost")
            assert problem_of(await client.answer()).status == 502
        assert a.heads == []
        assert service.failures


async def test_a_tunnel_through_tls_ends_with_the_client_s_last_byte(tmp_path: Path) -> None:
    theirs, ours = contexts(tmp_path, NAME)
    size, received = 4_000_000, 0
    ended = asyncio.Event()

    def switching(it: Upstream) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await it.head(reader)
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            nonlocal received
            while data := await reader.read(65536):
                received += len(data)
            ended.set()

        return handle

    async with (
        upstream(switching, tls=theirs) as a,
        gateway(tls=ours, a=named(a)) as server,
        connected(server.port) as client,
    ):
        client.get("a.localhost", "/", "GET", "Connection: upgrade", "Upgrade: echo")
        await client.until(b"\r\n\r\n")
        client.send(b"x" * size)
        client.writer.write_eof()
        await asyncio.wait_for(ended.wait(), 10)
    assert received == size


@pytest.mark.parametrize(
    ("url", "name", "at", "headers"),
    [
        ("http://127.0.0.1:80", None, "http://127.0.0.1:80", {}),
        ("http://[::1]:80", None, "http://[::1]:80", {}),
        ("https://a.code.run", "a.code.run", "https://a.code.run", {}),
        ("http://a.localhost:81", "a.localhost:81", "http://127.0.0.1:81", {"Host": "a.localhost:81"}),
    ],
)
def test_addresses(url: str, name: str | None, at: str, headers: dict[str, str]) -> None:
    assert own_name(url) == name
    assert request_for(url) == (at, headers)
    assert connect_to(url) in at
