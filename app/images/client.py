"""A client for any OCI registry (distribution specification 1.0 and 1.1)."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote, urlencode, urlsplit

import httpx

from app.images import upload
from app.images.answers import read_json, unavailable
from app.images.bearer import Credential
from app.images.errors import ImageInvalid, ImageNotFound, RegistryUnavailable
from app.images.manifests import MAX_MANIFEST
from app.images.reference import Hash, check_digest, check_reference, check_repository, digest_of, is_digest, new_hash
from app.images.source import Manifest
from app.images.tokens import Action, Scope, Token
from app.images.wire import ATTEMPTS, TIMEOUT, Wire

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_PIECE = 128 * 1024
_MAX_PAGES = 100


class Registry:
    """One registry, by its base URL, with a credential or none. Fulfils ``source.Source``.

    Give ``username`` and ``password`` for Basic and for the registry's token service, or ``bearer``, a token that is
    sent as it is. Errors are those of ``app.images.errors``; retries are described in ``wire``.
    """

    def __init__(
        self,
        base_url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        bearer: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: httpx.Timeout = TIMEOUT,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.wire = Wire(
            self.base_url,
            Credential(username, password, bearer),
            transport=transport,
            timeout=timeout,
            sleep=sleep,
            clock=clock,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def host(self) -> str:
        """Host and port, the way image references have it."""
        return urlsplit(self.base_url).netloc

    async def close(self) -> None:
        """Close all connections."""
        await self.wire.close()

    async def token(self, repository: str, *actions: Action) -> Token | None:
        """Return a fresh token of the registry's token service; None when it has none (Basic only, or open)."""
        challenge = await self.wire.challenge()
        if challenge is None or challenge.kind != "bearer":
            return None
        return await self.wire.token(_scope(repository, *actions))

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """Return a manifest by tag or digest, its digest checked."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        path = _path(repository, "manifests", check_reference(reference))
        scope = _scope(repository, "pull")
        answer = await self.wire.call("GET", path, scope, headers=headers, max_bytes=MAX_MANIFEST)
        wanted = reference if is_digest(reference) else answer.headers.get("docker-content-digest", "")
        digest = digest_of(answer.body, wanted if is_digest(wanted) else "sha256:")
        if is_digest(wanted) and digest != wanted:
            raise ImageInvalid(f"{self.host} gives another manifest than {wanted} in {repository}")
        return Manifest(digest, answer.headers.get("content-type", ""), answer.body)

    async def head_manifest(self, repository: str, reference: str) -> str | None:
        """Return the digest of a manifest, or None when it isn't there. The registry's word: nothing is checked."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        path = _path(repository, "manifests", check_reference(reference))
        try:
            answer = await self.wire.call("HEAD", path, _scope(repository, "pull"), headers=headers)
        except ImageNotFound:
            return None
        return answer.headers.get("docker-content-digest") or reference

    async def blob_size(self, repository: str, digest: str) -> int | None:
        """Return a blob's size in bytes; None when it isn't there."""
        path = _path(repository, "blobs", check_digest(digest))
        try:
            answer = await self.wire.call("HEAD", path, _scope(repository, "pull"))
            return int(answer.headers["content-length"])
        except ImageNotFound:
            return None
        except (KeyError, ValueError) as error:
            raise RegistryUnavailable(f"{self.host} does not tell the size of {digest}") from error

    async def get_blob(self, repository: str, digest: str, *, max_bytes: int) -> bytes:
        """Return a whole small blob, its digest checked."""
        data = bytearray()
        async with aclosing(self.open_blob(repository, digest)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > max_bytes:
                    raise ImageInvalid(f"the blob {digest} in {repository} has more than {max_bytes} bytes")
        if digest_of(bytes(data), digest) != digest:
            raise ImageInvalid(f"{self.host} gives another blob than {digest} in {repository}")
        return bytes(data)

    async def open_blob(self, repository: str, digest: str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield a blob's bytes from ``offset`` on; a cut connection is taken up again where it broke."""
        path, scope = _path(repository, "blobs", check_digest(digest)), _scope(repository, "pull")
        failures, end = 0, None
        while end is None or offset < end:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                async with self.wire.stream(path, scope, headers) as response:
                    # Who does not know ranges sends all of it.
                    skip = offset if response.status_code != 206 else 0
                    length = response.headers.get("content-length")
                    end = int(length) + offset - skip if length else None
                    async for data in response.aiter_raw(_PIECE):
                        fresh, skip = data[skip:], max(0, skip - len(data))
                        if fresh:
                            offset, failures = offset + len(fresh), 0
                            yield fresh
                    return
            except httpx.TransportError as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise unavailable(self.base_url, error) from error
                await self.wire.back_off(failures)

    async def stream_blob(self, repository: str, digest: str, path: Path, *, size: int) -> None:
        """Write a blob of ``size`` bytes to ``path``, which appears only when size and digest are right."""
        part, hash_, total = path.with_name(f".{path.name}.{uuid.uuid4().hex}"), new_hash(digest), 0
        try:
            with part.open("xb") as file:
                async with aclosing(self.open_blob(repository, digest)) as pieces:
                    async for data in pieces:
                        total += len(data)
                        if total > size:
                            break
                        await asyncio.to_thread(_take, file, hash_, data)
            if total != size or f"{digest.partition(':')[0]}:{hash_.hexdigest()}" != digest:
                raise ImageInvalid(f"{self.host} gives another blob than {digest} with {size} bytes in {repository}")
            await asyncio.to_thread(part.replace, path)
        finally:
            part.unlink(missing_ok=True)

    async def upload_blob(
        self, repository: str, digest: str, size: int, source: upload.Reader, *, chunk_bytes: int | None = None
    ) -> None:
        """Upload a blob of ``size`` bytes; ``source(offset)`` yields it from there on, and may be called again.

        By default in one request, which every registry takes; with ``chunk_bytes`` in pieces of that size. Either way
        a cut is taken up at the offset the registry has.
        """
        start = f"{_path(repository, 'blobs', 'uploads')}/"
        job = upload.Upload(self.wire, start, _scope(repository, "pull", "push"), check_digest(digest), size, source)

        async def done() -> bool:
            return await self.blob_size(repository, digest) == size

        await upload.run(job, done, chunk_bytes)

    async def mount_blob(self, repository: str, digest: str, source: str) -> bool:
        """Share a blob of another repository of this registry; False when the registry would rather have it sent."""
        query = urlencode({"mount": check_digest(digest), "from": check_repository(source)}, safe=":/")
        path = f"{_path(repository, 'blobs', 'uploads')}/?{query}"
        scope = f"{_scope(repository, 'pull', 'push')} {_scope(source, 'pull')}"
        answer = await self.wire.call("POST", path, scope)
        if answer.status != 201 and (location := answer.headers.get("location")):
            await upload.cancel(self.wire, location, _scope(repository, "pull", "push"))
        return answer.status == 201

    async def put_manifest(self, repository: str, reference: str, media_type: str, body: bytes) -> str:
        """Store a manifest under a tag or its digest; return its digest."""
        digest = digest_of(body, reference if is_digest(reference) else "sha256:")
        if is_digest(reference) and digest != reference:
            raise ImageInvalid(f"the manifest is {digest}, not {reference}")
        path, scope = _path(repository, "manifests", check_reference(reference)), _scope(repository, "pull", "push")
        answer = await self.wire.call("PUT", path, scope, headers={"Content-Type": media_type}, content=body)
        said = answer.headers.get("docker-content-digest", digest)
        if said != digest:
            raise ImageInvalid(f"{self.host} stored {said} instead of {digest}")
        return digest

    async def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a manifest by digest, or a tag; absence is success."""
        path = _path(repository, "manifests", check_reference(reference))
        with suppress(ImageNotFound):
            await self.wire.call("DELETE", path, _scope(repository, "delete"))

    async def tags(self, repository: str) -> list[str]:
        """Return all tags; ImageNotFound when there is no such repository."""
        found: list[str] = []
        path: str | None = _path(repository, "tags", "list")
        for _ in range(_MAX_PAGES):
            if path is None:
                break
            answer = await self.wire.call("GET", path, _scope(repository, "pull"), max_bytes=MAX_MANIFEST)
            found += [t for t in read_json(answer.body).get("tags") or [] if isinstance(t, str)]
            link = httpx.Response(200, headers=answer.headers).links.get("next", {}).get("url")
            path = str(answer.url.join(link)) if link else None
        return found


def _take(file: IO[bytes], hash_: Hash, data: bytes) -> None:
    file.write(data)
    hash_.update(data)


def _path(repository: str, kind: str, name: str) -> str:
    return f"/v2/{check_repository(repository)}/{kind}/{quote(name, safe=':')}"


def _scope(repository: str, *actions: Action) -> str:
    return str(Scope(repository, frozenset(actions)))
