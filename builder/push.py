"""Push an image by digest to the one repository that the grant opens (OCI distribution spec v1.1)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx

from builder.control import Grant
from builder.image import CHUNK, Blob, Image
from builder.outcome import Failure, Reason
from builder.pace import TRANSIENT, Pace

Regrant = Callable[[], Awaitable[Grant]]


class _Later(Exception):
    """The registry can't just now; ``after`` is its Retry-After."""

    def __init__(self, problem: str, after: str | None = None) -> None:
        super().__init__(problem)
        self.after = after


class _Expired(Exception):
    """The grant's token is not taken."""


async def push(client: httpx.AsyncClient, image: Image, grant: Grant, regrant: Regrant, pace: Pace) -> None:
    """Upload what the registry lacks, the manifest last.

    Transient failures are tried again for ``pace.registry_patience`` seconds, then it is
    Failure(registry_unavailable); a refusal is Failure(push_failed). ``regrant`` is asked once when the token is
    refused: a long build can outlive it.
    """
    pusher = _Pusher(client, grant, regrant, pace)
    try:
        async with asyncio.TaskGroup() as group:
            for blob in (image.layer, image.config):
                group.create_task(pusher.patiently(pusher.put_blob, blob))
    except ExceptionGroup as failed:
        # Not except*: before Python 3.11.4 it wraps what is raised in it in a group again.
        raise failed.exceptions[0] from None
    await pusher.patiently(pusher.put_manifest, image.manifest)


class _Pusher:
    def __init__(self, client: httpx.AsyncClient, grant: Grant, regrant: Regrant, pace: Pace) -> None:
        self._client = client
        self._grant = grant
        self._regrant = regrant
        self._pace = pace
        self._give_up = time.monotonic() + pace.registry_patience
        self._regranting = asyncio.Lock()
        self._renewed = False

    async def patiently(self, step: Callable[[Blob], Awaitable[None]], blob: Blob) -> None:
        """Do one step, again after transient failures: each starts from what the registry has."""
        attempt = 0
        while True:
            token = self._grant.token
            try:
                return await step(blob)
            except _Expired as error:
                await self._renew(token, error)
            except (_Later, httpx.TransportError) as error:
                if time.monotonic() >= self._give_up:
                    raise Failure(
                        Reason.REGISTRY_UNAVAILABLE, f"The registry did not take the image: {error!r}."
                    ) from error
                await self._pace.wait(attempt, getattr(error, "after", None))
                attempt += 1

    async def put_blob(self, blob: Blob) -> None:
        """Upload one blob in one piece, unless it is there."""
        there = await self._ask("HEAD", self._url(f"blobs/{blob.digest}"))
        if there.status_code == 200:
            return
        if there.status_code != 404:
            raise _refusal("look for a blob", there)
        started = await self._ask("POST", self._url("blobs/uploads/"))
        if started.status_code != 202 or "location" not in started.headers:
            raise _refusal("start an upload", started)
        target = started.url.join(started.headers["location"]).copy_merge_params({"digest": blob.digest})
        headers = {"content-type": "application/octet-stream", "content-length": str(blob.size)}
        stored = await self._ask("PUT", target, headers=headers, content=_content(blob))
        if stored.status_code != 201:
            raise _refusal("store a blob", stored)

    async def put_manifest(self, manifest: Blob) -> None:
        """Upload the manifest under its digest and make sure that the registry saw the same."""
        url = self._url(f"manifests/{manifest.digest}")
        stored = await self._ask("PUT", url, headers={"content-type": manifest.media_type}, content=manifest.data)
        if stored.status_code != 201:
            raise _refusal("store the manifest", stored)
        if stored.headers.get("docker-content-digest", manifest.digest) != manifest.digest:
            raise Failure(Reason.PUSH_FAILED, "The registry computed another digest for the manifest.")

    async def _ask(
        self, method: str, url: httpx.URL, *, headers: dict[str, str] | None = None, content: object = None
    ) -> httpx.Response:
        registry = httpx.URL(self._grant.registry)
        sent = dict(headers or {})
        # An upload may be sent to another host, say a bucket: our token is not for it.
        if (url.scheme, url.host, url.port) == (registry.scheme, registry.host, registry.port):
            sent["authorization"] = f"Bearer {self._grant.token}"
        response = await self._client.request(method, url, headers=sent, content=content)  # type: ignore[arg-type]
        if response.status_code in TRANSIENT:
            raise _Later(f"status {response.status_code}", response.headers.get("retry-after"))
        if response.status_code == 401:
            raise _Expired
        return response

    async def _renew(self, refused: str, cause: _Expired) -> None:
        async with self._regranting:
            if self._grant.token != refused:
                return
            if self._renewed:
                raise Failure(Reason.PUSH_FAILED, "The registry does not take the push token.") from cause
            self._renewed = True
            self._grant = await self._regrant()

    def _url(self, path: str) -> httpx.URL:
        return httpx.URL(f"{self._grant.registry.rstrip('/')}/v2/{self._grant.repository}/{path}")


def _content(blob: Blob) -> bytes | AsyncIterator[bytes]:
    return blob.data if isinstance(blob.data, bytes) else _pieces(blob.data)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            yield piece


def _refusal(verb: str, response: httpx.Response) -> Failure:
    words = response.text[:300].strip() or "no further words"
    if response.status_code == 413:
        return Failure(Reason.PUSH_FAILED, f"The image is larger than the registry takes: {words}")
    return Failure(Reason.PUSH_FAILED, f"The registry refused to {verb}: status {response.status_code}, {words}")
