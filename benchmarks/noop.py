"""A platform that does nothing, at once: what is left is Slipway's own cost. Services answer from one tiny HTTP server."""

import asyncio
import time

from app.platforms.base import (
    Address,
    BuilderSpec,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Phase,
    Platform,
    Ref,
    ServiceRef,
    ServiceSpec,
    Size,
    Traits,
)
from app.platforms.catalog import Catalog, Entry

TRAITS = Traits(
    scale_to_zero="manual",
    idle_signal="requests",
    exit_codes=True,
    private_registry=True,
    own_registry=None,
    remote=False,
    max_builders=100_000,
    poll_seconds=0.0,
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _now(name: str) -> str:
    """Return a handle that tells when it was made, in Unix seconds."""
    return f"{name}@{time.time():.6f}"


class Builders:
    """Launches nothing."""

    def fit(self, size: Size) -> Size:
        return size

    async def launch(self, spec: BuilderSpec) -> Launched:
        return Launched(handle=_now(spec.name), region=None, effective=spec.size)

    async def inspect(self, ref: Ref) -> Inspection:
        return Inspection(phase=Phase.RUNNING)

    async def stop(self, ref: Ref) -> None:
        return

    async def list_ours(self, installation: str) -> Listing:
        return Listing(items=(), complete=False)

    async def logs(self, ref: Ref, *, limit: int = 200) -> list[LogLine]:
        return []


class Services:
    """Deploys nothing; every release is healthy at one address."""

    def __init__(self) -> None:
        self.url = ""

    def fit(self, size: Size) -> Size:
        return size

    async def deploy(self, spec: ServiceSpec) -> Launched:
        return Launched(handle=_now(spec.release), region=None, effective=spec.size)

    async def inspect(self, ref: ServiceRef) -> Inspection:
        return Inspection(phase=Phase.RUNNING, address=Address(url=self.url, instance_id=ref.release))

    async def activate(self, ref: ServiceRef) -> None:
        return

    async def sleep(self, ref: ServiceRef) -> None:
        return

    async def wake(self, ref: ServiceRef) -> Address:
        return Address(url=self.url, instance_id=ref.release)

    async def retire(self, ref: ServiceRef) -> None:
        return

    async def delete(self, ref: ServiceRef) -> None:
        return

    async def list_ours(self, installation: str) -> Listing:
        return Listing(items=(), complete=False)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        return []


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def join(catalog: Catalog) -> asyncio.Server:
    """Put the platform ``noop`` into a catalog; returns the server that its services answer from."""
    services = Services()
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    services.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    entry = Entry(name="noop", traits=TRAITS, configured=True)
    catalog.entries = {**catalog.entries, "noop": entry}
    catalog.held["noop"] = Platform(name="noop", traits=TRAITS, builders=Builders(), services=services)
    return server
