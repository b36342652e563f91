"""What all imitations share: a served API with named operations, misbehaviours on request, and a contract that watches.

A platform's imitation subclasses ``Imitation``, lists its ``routes`` and keeps its state in plain attributes::

    class KoyebImitation(Imitation):
        name = "koyeb"
        misbehaviours = {"429": Fault(429, {"message": "slow down"}, headers={"x-ratelimit-reset": "1"})}

        def routes(self) -> Sequence[BaseRoute]:
            return [self.route("create service", "POST", "/v1/services", self.create_service)]

        async def create_service(self, request: Request) -> Response:
            '''Take a service definition (koyeb.md §3.1).'''

Each handler names the section of its source in its docstring. It answers, or raises ``Refused``. ``misbehave("429")`` makes the
next fitting operation do that; ``requests`` is what came in; ``contract.violations`` is what was wrong with it.

Beside the platform's own API there is ``GET /-/imitation``: what is there, what runs and what came in, for whoever looks on from
another process.
"""
# Over 250 lines: what they share is one class, and the few values that it deals in.

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from app.imitations.contracts import Amendments, Contract, Exchange, load
from app.imitations.edge import Edge
from app.imitations.lossy import ROUTE, swallow
from app.imitations.programs import Running
from app.imitations.server import serving

Handler = Callable[[Request], Awaitable[Response]]

LOOK_PATH = "/-/imitation"
IDLE_TICK_SECONDS = 0.25


@dataclass
class Refused(Exception):
    """An answer that is not a success; ``body`` becomes JSON, a string stays text."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One misbehaviour, for the next ``times`` requests of ``operations`` (all when empty).

    It answers ``status`` and ``body`` instead of acting, or with ``after`` once it has acted all the same. Status 0 cuts the
    connection without an answer; -1 never answers. ``checked`` False keeps it from the contract, which has no such answers.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    operations: tuple[str, ...] = ()
    after: bool = False
    checked: bool = True
    times: int = 1

    def fits(self, operation: str) -> bool:
        """Tell whether it is about this operation."""
        return not self.operations or operation in self.operations


#: The next builder's last word never arrives, though the builder was told that it had.
LOST_CALLBACK = "lost callback"

#: What any platform may do; an imitation adds its own.
COMMON: Mapping[str, Fault] = {
    "cut before": Fault(0),
    "cut after success": Fault(0, after=True),
    "timeout after success": Fault(-1, after=True),
    "500": Fault(500, {"error": "internal error"}, checked=False),
    "503 text": Fault(503, "upstream connect error", checked=False),
    "504 after success": Fault(504, "gateway time-out", after=True, checked=False),
}


@dataclass(frozen=True)
class Seen:
    """One request that came in, and how it was answered (0: not at all)."""

    operation: str
    method: str
    path: str
    query: str
    status: int
    body: bytes = field(repr=False)


class Machines(Protocol):
    """The machines of a stand-in; they start while ``released`` is set."""

    released: asyncio.Event

    async def aclose(self) -> None:
        """End all that runs."""
        ...


class Imitation:
    """One platform's stand-in. An async context manager: ``url`` is there inside of it.

    ``folder`` is for what it keeps on disk, ``contracts`` the folder of official contracts, if any. ``speed`` is how many times
    faster than there the minutes pass after which an idle service is put to sleep; 0: only ``idle_pass`` does it.
    """

    host: Machines
    """Where its machines are."""
    name: ClassVar[str]
    contract_file: ClassVar[str]
    amendments: ClassVar[Amendments] = Amendments()
    misbehaviours: ClassVar[Mapping[str, Fault]] = {}
    quirks: ClassVar[frozenset[str]] = frozenset()
    """Names of misbehaviours that are no answers: code asks for them by ``quirk``."""

    def __init__(
        self,
        folder: Path,
        *,
        contracts: Path | None = None,
        port: int = 0,
        speed: float = 0.0,
        builder_env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.contract: Contract = load(contracts, self.contract_file, self.amendments)
        self.requests: list[Seen] = []
        self.url = ""
        self.edge = Edge(self.pick)
        self.edge_url = ""
        self._port = port
        self._speed = speed
        self._builder_env = dict(builder_env or {})
        self._faults: list[Fault] = []
        self._quirks: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    def routes(self) -> Sequence[BaseRoute]:
        """Return the API; see ``route``."""
        raise NotImplementedError

    async def pick(self, label: str) -> str | None:
        """Return where the edge sends a request for this name, after waking it if need be; None when nothing listens."""
        raise NotImplementedError

    @property
    def things(self) -> list[str]:
        """Names of all that somebody made and that is still there, each with its kind: ``machine slp-…``."""
        raise NotImplementedError

    @property
    def programs(self) -> list[Running]:
        """All programs that run now, builders and services."""
        raise NotImplementedError

    async def rest(self, speed: float) -> None:
        """Put to sleep what has been idle for long enough, where the platform does so by itself; called again and again."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            own = [Route(LOOK_PATH, self._look), ROUTE]
            self.url = await stack.enter_async_context(
                serving(Starlette(routes=[*own, *self.routes()]), port=self._port)
            )
            self.host.released.set()
            stack.push_async_callback(self.host.aclose)
            stack.push_async_callback(self.edge.aclose)
            self.edge_url = await stack.enter_async_context(serving(self.edge))
            if self._speed:
                resting = asyncio.create_task(self._rest(), name=f"{self.name} idle services")
                stack.push_async_callback(_ended, resting)
            self._stack = stack.pop_all()
        return self

    async def _rest(self) -> None:
        while True:
            await self.rest(self._speed)
            await asyncio.sleep(IDLE_TICK_SECONDS)

    async def _look(self, request: Request) -> Response:
        """Tell what is there, for demo and benchmark; the platform itself has no such path."""
        body = {
            "name": self.name,
            "things": self.things,
            "programs": [running.pid for running in self.programs],
            "requests": Counter(seen.operation for seen in self.requests),
            "checked": self.contract.checked,
            "skipped": self.contract.skipped,
            "violations": self.contract.violations,
        }
        return JSONResponse(body)

    def outfit(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return a builder's environment: what it was given, and the toolchain that is in the real builder image."""
        made = {**env, **self._builder_env}
        if self.quirk(LOST_CALLBACK):
            made["SLIPWAY_URL"] = swallow(self.url, made["SLIPWAY_URL"])
        return made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def misbehave(self, name: str, *operations: str, times: int = 1, **changes: Any) -> None:
        """Make the next requests of these operations (default: those the misbehaviour is about) go wrong in that way."""
        if name in {*self.quirks, LOST_CALLBACK}:
            self._quirks[name] += times
            return
        fault = {**COMMON, **self.misbehaviours}[name]
        changes |= {"operations": operations} if operations else {}
        self._faults.append(replace(fault, times=times, **changes))

    def quirk(self, name: str) -> bool:
        """Tell whether this quirk was asked for, and use it up."""
        assert name in {*self.quirks, LOST_CALLBACK}, name
        if not self._quirks[name]:
            return False
        self._quirks[name] -= 1
        return True

    def count(self, operation: str) -> int:
        """Return how often an operation was asked for."""
        return sum(1 for r in self.requests if r.operation == operation)

    def route(self, operation: str, method: str, path: str, handler: Handler) -> Route:
        """Return a route that is recorded, may misbehave, and is checked against the contract."""

        async def endpoint(request: Request) -> Response:
            return await self._attend(operation, handler, request)

        return Route(path, endpoint, methods=[method], name=operation)

    def unchecked(self, operation: str, method: str, path: str, handler: Handler) -> Route:
        """Return a route that the contract does not know of."""

        async def endpoint(request: Request) -> Response:
            return await self._attend(operation, handler, request, check=False)

        return Route(path, endpoint, methods=[method], name=operation)

    async def _attend(self, operation: str, handler: Handler, request: Request, *, check: bool = True) -> Response:
        body = await request.body()
        fault = self._take(operation)
        if fault is None or fault.after:
            try:
                response = await handler(request)
            except Refused as r:
                response = _response(r.status, r.body, r.headers)
        if fault is not None:
            response = _response(fault.status, fault.body, fault.headers)
        query = request.scope["query_string"].decode()
        status = response.status_code if fault is None else max(fault.status, 0)
        self.requests.append(Seen(operation, request.method, request.url.path, query, status, body))
        if check and (fault is None or (fault.checked and fault.status > 0)):
            self._check(request, query, body, response)
        return response

    def _take(self, operation: str) -> Fault | None:
        for index, fault in enumerate(self._faults):
            if fault.fits(operation):
                if fault.times == 1:
                    del self._faults[index]
                else:
                    self._faults[index] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def _check(self, request: Request, query: str, body: bytes, response: Response) -> None:
        self.contract.check(
            Exchange(
                method=request.method,
                path=request.url.path,
                query=query,
                headers=dict(request.headers),
                body=body,
                status=response.status_code,
                answer_type=response.headers.get("content-type", ""),
                answer=bytes(response.body),
            )
        )


def _response(status: int, body: Any, headers: Mapping[str, str]) -> Response:
    if status == 0:
        return _Cut()
    if status < 0:
        return _Silence()
    if isinstance(body, str):
        return Response(body, status, dict(headers), "text/plain")
    return Response(None, status, dict(headers)) if body is None else JSONResponse(body, status, dict(headers))


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class CutError(Exception):
    """Ends a connection in the middle of an answer; the server notes it and closes the socket."""


class _Cut(Response):
    """Promises an answer and breaks off."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"2"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise CutError


class _Silence(Response):
    """Never answers; ends when the caller has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
