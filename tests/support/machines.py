"""What stands in the yard: builders that only are there, and releases that listen on real loopback ports."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from app.platforms.base import Address, BuilderSpec, Phase, ServiceSpec


class Behaviour(StrEnum):
    """What a service's program does when it is started."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """It listens and answers 500."""
    SILENT = "silent"
    """It runs and never listens."""
    CRASHING = "crashing"
    """It ends at once, with code 3."""
    HUNGRY = "hungry"
    """It is ended for its memory."""


@dataclass
class Machine:
    """A builder."""

    spec: BuilderSpec
    handle: str
    created_at: datetime
    phase: Phase = Phase.RUNNING
    exit_code: int | None = None
    out_of_memory: bool = False
    words: list[str] = field(default_factory=list)


@dataclass
class Unit:
    """A release. ``asked`` counts the requests it has answered."""

    spec: ServiceSpec
    handle: str
    created_at: datetime
    phase: Phase = Phase.ASLEEP
    instance_id: str = ""
    starts: int = 0
    asked: int = 0
    server: asyncio.Server | None = None
    exit_code: int | None = None

    @property
    def behaviour(self) -> Behaviour:
        return Behaviour(self.spec.env.get("BEHAVE", Behaviour.HEALTHY))

    @property
    def address(self) -> Address | None:
        if self.server is None:
            return None
        return Address(url=f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}", instance_id=self.instance_id)

    async def start(self) -> None:
        self.starts += 1
        self.instance_id = f"{self.handle}-{self.starts}"
        self.exit_code = None
        match self.behaviour:
            case Behaviour.CRASHING:
                self.phase, self.exit_code = Phase.EXITED, 3
            case Behaviour.HUNGRY:
                self.phase, self.exit_code = Phase.EXITED, 137
            case Behaviour.SILENT:
                self.phase = Phase.RUNNING
            case _:
                self.phase = Phase.RUNNING
                self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            status = "200 OK" if self.behaviour is Behaviour.HEALTHY else "500 Internal Server Error"
            body = self.instance_id.encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def stop(self, phase: Phase = Phase.ASLEEP) -> None:
        self.phase = phase
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None
