"""A control plane and a registry as the builder sees them: real HTTP on a loopback socket, stateful, strict.

It keeps to ``docs/builder-protocol.md`` and to the OCI distribution spec, checks every token, signature and digest, and
can be told to misbehave: ``plan`` holds, per path, what to do instead of answering.

Over the usual length, so that the whole of the other side can be read in one place.
"""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app.imitations.server import serving as served

RUN = "run_0000000000000000000000001a"
TOKEN = f"slr.{RUN}.c2VjcmV0LW1hYy1vZi10aGUtcnVu"
GRANT = "grant-token-that-nobody-may-see"

#: What a plan can say: a status to answer with, or a way not to answer at all.
Misdeed = int | str


@dataclass
class ControlPlane:
    """State of one run and everything that was said about it."""

    source: bytes = b""
    orders: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    instance: str | None = None
    over: bool = False
    cancel: bool = False
    deadline: float = field(default_factory=lambda: time.time() + 120)
    plan: dict[str, deque[Misdeed]] = field(default_factory=lambda: defaultdict(deque))
    lines: list[dict[str, Any]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    heartbeats: list[str] = field(default_factory=list)
    completion: dict[str, Any] | None = None
    webhook_ids: list[str] = field(default_factory=list)
    stamps: list[str] = field(default_factory=list)
    grants: int = 0
    asked: list[str] = field(default_factory=list)
    traces: set[str | None] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=lambda: [GRANT])
    good_tokens: set[str] = field(default_factory=lambda: {GRANT})
    most_blob: int = 1 << 30
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, true: Callable[[], object], seconds: float = 20.0) -> None:
        """Block until something holds; it is looked at after every request."""
        with self.changed:
            assert self.changed.wait_for(true, seconds), "it did not come to that in time"

    @property
    def text(self) -> str:
        """The whole log."""
        return "\n".join(line["m"] for line in self.lines)

    @property
    def everything(self) -> str:
        """All that was said, for looking for what must not be in it."""
        return json.dumps([self.lines, self.completion, self.heartbeats])

    def image(self) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        """Return manifest, config and layer of the image that was reported."""
        assert self.completion is not None
        manifest = json.loads(self.manifests[self.completion["image"]["digest"]])
        config = json.loads(self.blobs[manifest["config"]["digest"]])
        return manifest, config, self.blobs[manifest["layers"][0]["digest"]]

    def answer(self) -> dict[str, Any]:
        """Return the orders, as a claim gets them."""
        base: dict[str, Any] = {
            "run_id": RUN,
            "build_id": "bld_0000000000000000000000001a",
            "kind": "go",
            "source": {"kind": "archive", "digest": None},
            "build": {"package": ".", "goarch": "amd64"},
            "modules": {"goproxy": "off", "gosumdb": None},
            "image": {"repository": "slipway/run-1", "port": 8080, "created": 0, "labels": {"a": "b"}},
            "limits": {},
            "allow_hosts": [],
            "deadline": self.deadline,
            "heartbeat_seconds": 10.0,
        }
        return {**base, **self.orders}


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")


class App:
    """The routes; ``state`` is what the test looks at."""

    def __init__(self, state: ControlPlane) -> None:
        self.state = state
        run = "/v1/runs/{run}"
        self.routes = Starlette(
            routes=[
                Route(f"{run}/claim", self.claim, methods=["POST"]),
                Route(f"{run}/source", self.source, methods=["GET"]),
                Route(f"{run}/logs", self.logs, methods=["POST"]),
                Route(f"{run}/heartbeat", self.heartbeat, methods=["POST"]),
                Route(f"{run}/push-grant", self.grant, methods=["POST"]),
                Route(f"{run}/complete", self.complete, methods=["POST"]),
                Route("/v2/{name:path}/blobs/uploads/", self.upload, methods=["POST"]),
                Route("/v2/{name:path}/blobs/uploads/{id}", self.blob_put, methods=["PUT"]),
                Route("/v2/{name:path}/blobs/{digest}", self.blob_head, methods=["HEAD"]),
                Route("/v2/{name:path}/manifests/{digest}", self.manifest_put, methods=["PUT"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        key = "registry" if path.startswith("/v2/") else path.rpartition("/")[2]
        plan = self.state.plan[f"{method} {key}"] or self.state.plan[key]
        misdeed = plan.popleft() if plan else None
        # Before the answer: who has it may be gone, and looked for here, before this thread goes on.
        self.state.asked.append(f"{method} {key}")
        try:
            # Some misdeeds come after the deed: the answer is what gets lost.
            if misdeed is None:
                await self._guarded(scope, receive, send)
            elif misdeed == "lose":
                await self._guarded(scope, receive, self._nowhere)
                raise ConnectionResetError
            elif misdeed == "reset":
                raise ConnectionResetError
            elif misdeed == "hang":
                await self._until_gone(receive)
            elif misdeed == "garbage":
                await Response("<html>hello</html>")(scope, receive, send)
            else:
                await _problem(int(misdeed), "as planned")(scope, receive, send)
        except ConnectionResetError:
            scope["extensions"]["slipway.drop"]()
        finally:
            with self.state.changed:
                self.state.traces.add(Request(scope).headers.get("traceparent"))
                self.state.changed.notify_all()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Request(scope))
        await (refusal or self.routes)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization")
        if request.url.path.startswith("/v2/"):
            if not given or given.removeprefix("Bearer ") not in self.state.good_tokens:
                return JSONResponse({"errors": [{"code": "UNAUTHORIZED"}]}, 401)
            return None
        if given != f"Bearer {TOKEN}":
            return _problem(401, "not a good token")
        if request.url.path.split("/")[3] != RUN:
            return _problem(403, "another run's token")
        return None

    @staticmethod
    async def _nowhere(message: Message) -> None:
        del message

    @staticmethod
    async def _until_gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def _other(self, body: dict[str, Any]) -> Response | None:
        if self.state.instance is not None and body["instance"] != self.state.instance:
            return _problem(409, "another instance holds the run")
        return _problem(410, "the run is over") if self.state.over else None

    async def claim(self, request: Request) -> Response:
        body = await request.json()
        if refusal := self._other(body):
            return refusal
        self.state.instance = body["instance"]
        return JSONResponse(self.state.answer())

    async def source(self, request: Request) -> Response:
        return Response(self.state.source, media_type="application/gzip")

    async def logs(self, request: Request) -> Response:
        body = await request.json()
        if refusal := self._other(body):
            return refusal
        self.state.batches.append(body)
        assert body["seq"] <= len(self.state.lines), "a gap in the numbers"
        self.state.lines += body["lines"][len(self.state.lines) - body["seq"] :]
        return Response(status_code=204)

    async def heartbeat(self, request: Request) -> Response:
        body = await request.json()
        if refusal := self._other(body):
            return refusal
        self.state.heartbeats.append(body["stage"])
        return JSONResponse({"cancel": self.state.cancel, "deadline": self.state.deadline})

    async def grant(self, request: Request) -> Response:
        if refusal := self._other(await request.json()):
            return refusal
        token = self.state.tokens[min(self.state.grants, len(self.state.tokens) - 1)]
        self.state.grants += 1
        repository = self.state.answer()["image"]["repository"]
        return JSONResponse(
            {"registry": self.state.url, "repository": repository, "token": token, "expires_at": time.time() + 300}
        )

    async def complete(self, request: Request) -> Response:
        raw = await request.body()
        identity, stamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        mac = hmac.new(TOKEN.encode(), f"{identity}.{stamp}.".encode() + raw, hashlib.sha256).digest()
        if request.headers["webhook-signature"] != f"v1,{base64.b64encode(mac).decode()}":
            return _problem(401, "the signature does not fit")
        if abs(time.time() - int(stamp)) > 300:
            return _problem(401, "the time is off")
        body = json.loads(raw)
        if len(raw) > self.state.answer()["limits"].get("completion_bytes", 1 << 18):
            return _problem(413, "too large")
        if refusal := self._other(body):
            return refusal
        self.state.webhook_ids.append(identity)
        self.state.stamps.append(stamp)
        self.state.completion = body
        return JSONResponse({"accepted": True, "build_id": "bld_1", "build_status": "promoting"})

    async def upload(self, request: Request) -> Response:
        name = request.path_params["name"]
        return Response(status_code=202, headers={"location": f"/v2/{name}/blobs/uploads/1?state=x"})

    async def blob_put(self, request: Request) -> Response:
        body, digest = await request.body(), request.query_params["digest"]
        if request.query_params.get("state") != "x" or f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            return JSONResponse({"errors": [{"code": "DIGEST_INVALID"}]}, 400)
        if len(body) > self.state.most_blob:
            return JSONResponse({"errors": [{"code": "SIZE_INVALID"}]}, 413)
        self.state.blobs[digest] = body
        return Response(status_code=201, headers={"docker-content-digest": digest})

    async def blob_head(self, request: Request) -> Response:
        return Response(status_code=200 if request.path_params["digest"] in self.state.blobs else 404)

    async def manifest_put(self, request: Request) -> Response:
        body, digest = await request.body(), request.path_params["digest"]
        named = json.loads(body)
        missing = [d["digest"] for d in (named["config"], *named["layers"]) if d["digest"] not in self.state.blobs]
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest or missing:
            return JSONResponse({"errors": [{"code": "MANIFEST_INVALID"}]}, 400)
        self.state.manifests[digest] = body
        return Response(status_code=201, headers={"docker-content-digest": digest})


@contextmanager
def serving(state: ControlPlane) -> Iterator[ControlPlane]:
    """Serve on a loopback port of the kernel's choice until the block ends."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    app = App(state)

    class Dropping(H11Protocol):
        """Lets the app cut the line, as a network does."""

        def handle_events(self) -> None:
            super().handle_events()
            scope = getattr(self, "scope", None)
            if scope is not None:
                scope.setdefault("extensions", {})["slipway.drop"] = self.transport.abort

    with start_blocking_portal() as loop, loop.wrap_async_context_manager(served(app, http=Dropping)) as state.url:
        yield state
