"""The embedded registry: OCI distribution 1.1 over the layouts on disk, with tokens scoped per repository and verb.

``create_registry`` gives an ASGI app to be mounted at ``/v2``. Every refusal is the JSON the specification has for it.
"""

import asyncio
from pathlib import Path
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.images import blobs, layout, manifests, uploads
from app.images.errors import Fault
from app.images.faults import HANDLERS
from app.images.guard import Authenticate, Guard
from app.images.reference import is_digest, is_repository, is_tag
from app.images.tokens import Action, Grants, Scope, TokenAuthority
from app.images.transfers import FilePart, Target, parse_range, receive_body, settled_offset, upload_headers

_MAX_TAGS = 1000


def create_registry(
    root: Path,
    authority: TokenAuthority,
    *,
    authenticate: Authenticate,
    max_image_bytes: int,
    public_url: str | None = None,
) -> Starlette:
    """Return the registry over ``root`` as an app to be mounted at ``/v2``.

    ``authenticate`` tells who a Basic user of the token endpoint is. ``max_image_bytes`` bounds each blob and each
    repository. ``public_url`` is where other machines find the token endpoint; loopback callers are sent back where
    they came from.
    """
    server = _Server(root, Guard(authority, authenticate, public_url), max_image_bytes)
    return Starlette(
        routes=[
            Route("/", server.ping, methods=["GET"]),
            Route("/token", server.guard.token, methods=["GET"]),
            Route("/{name:path}/blobs/uploads/", server.start_upload, methods=["POST"]),
            Route("/{name:path}/blobs/uploads/{upload}", server.upload, methods=["GET", "PATCH", "PUT", "DELETE"]),
            Route("/{name:path}/blobs/{digest}", server.blob, methods=["GET", "HEAD", "DELETE"]),
            Route("/{name:path}/manifests/{reference}", server.manifest, methods=["GET", "HEAD", "PUT", "DELETE"]),
            Route("/{name:path}/tags/list", server.tags, methods=["GET"]),
            Route("/{name:path}/referrers/{digest}", server.referrers, methods=["GET"]),
        ],
        exception_handlers=HANDLERS,
    )


class _Server:
    """The routes; one object per mounted registry."""

    def __init__(self, root: Path, guard: Guard, max_bytes: int) -> None:
        self.root, self.guard, self.max_bytes = root, guard, max_bytes

    async def ping(self, request: Request) -> Response:
        self.guard.check(request)
        return JSONResponse({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})

    async def start_upload(self, request: Request) -> Response:
        query = request.query_params
        mount, source, digest = query.get("mount"), query.get("from"), query.get("digest")
        from_other = (_scope(source, "pull"),) if mount and source and is_repository(source) else ()
        name, grants = self._enter(request, "pull", "push", optional=from_other)
        if mount and await self._mount(grants, name, _digest(mount), source):
            return self._created(request, name, mount)
        upload = await asyncio.to_thread(uploads.start, self.root, name)
        location = f"{_base(request)}/{name}/blobs/uploads/{upload}"
        if digest is None:
            return Response(status_code=202, headers=upload_headers(request, 0, location))
        return await self._finish(request, name, upload, digest)

    async def _mount(self, grants: Grants, name: str, digest: str, source: str | None) -> bool:
        # Without a source, any repository that the token may read will do.
        known = [source] if source else [s.repository for s in grants.scopes if s.repository != name]
        for other in known:
            if "pull" in grants.allowed(other):
                mounted = asyncio.to_thread(blobs.mount_blob, self.root, other, name, digest, max_bytes=self.max_bytes)
                if await mounted:
                    return True
        return False

    async def upload(self, request: Request) -> Response:
        name, _ = self._enter(request, "pull", "push")
        upload, query = request.path_params["upload"], request.query_params
        if request.method == "DELETE":
            await asyncio.to_thread(uploads.cancel, self.root, name, upload)
            return Response(status_code=204)
        if request.method == "PUT":
            return await self._finish(request, name, upload, query.get("digest", ""))
        target = Target(self.root, name, upload, self.max_bytes)
        if request.method == "PATCH":
            await receive_body(request, target)
        offset = await settled_offset(target)
        status = 202 if request.method == "PATCH" else 204
        return Response(status_code=status, headers=upload_headers(request, offset))

    async def _finish(self, request: Request, name: str, upload: str, digest: str) -> Response:
        _digest(digest)
        await receive_body(request, Target(self.root, name, upload, self.max_bytes))
        await asyncio.to_thread(uploads.finish, self.root, name, upload, digest, max_bytes=self.max_bytes)
        return self._created(request, name, digest)

    async def blob(self, request: Request) -> Response:
        name, _ = self._enter(request, "delete" if request.method == "DELETE" else "pull")
        digest = _digest(request.path_params["digest"])
        if request.method == "DELETE":
            await asyncio.to_thread(blobs.delete_blob, self.root, name, digest)
            return Response(status_code=202)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
            "X-Content-Type-Options": "nosniff",
        }
        size = await asyncio.to_thread(blobs.stat_blob, self.root, name, digest)
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(size)})
        part = parse_range(request.headers.get("range"), size)
        start, length = part or (0, size)
        if part:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        file = await asyncio.to_thread(blobs.open_blob, self.root, name, digest)
        return FilePart(file, start, length, status=206 if part else 200, headers=headers)

    async def manifest(self, request: Request) -> Response:
        verb: Action = {"PUT": "push", "DELETE": "delete"}.get(request.method, "pull")  # type: ignore[assignment]
        name, _ = self._enter(request, *(("pull", "push") if verb == "push" else (verb,)))
        reference = request.path_params["reference"]
        if not (is_digest(reference) or is_tag(reference)):
            raise Fault(400, "DIGEST_INVALID" if ":" in reference else "MANIFEST_INVALID", "not a tag or a digest")
        if request.method == "PUT":
            return await self._put_manifest(request, name, reference)
        if request.method == "DELETE":
            await asyncio.to_thread(manifests.delete_manifest, self.root, name, reference)
            return Response(status_code=202)
        found = await asyncio.to_thread(manifests.get_manifest, self.root, name, reference)
        if request.method == "HEAD":
            # Who asks wants to rely on it, so a collection has to let it be, as with a blob.
            await asyncio.to_thread(blobs.stat_blob, self.root, name, found.entry.digest)
        headers = {
            "Content-Type": found.entry.media_type,
            "Docker-Content-Digest": found.entry.digest,
            "ETag": f'"{found.entry.digest}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(found.body, headers=headers)

    async def _put_manifest(self, request: Request, name: str, reference: str) -> Response:
        tags = tuple(request.query_params.getlist("tag")) if is_digest(reference) else ()
        if len(tags) > 100 or not all(map(is_tag, tags)):
            raise Fault(400, "MANIFEST_INVALID", "a tag of the query is not one")
        body = bytearray()
        async for data in request.stream():
            body += data
            if len(body) > manifests.MAX_MANIFEST:
                raise Fault(413, "SIZE_INVALID", f"a manifest may have at most {manifests.MAX_MANIFEST} bytes")
        put = await asyncio.to_thread(
            manifests.put_manifest,
            self.root,
            name,
            reference,
            request.headers.get("content-type"),
            bytes(body),
            tags=tags,
            max_bytes=self.max_bytes,
        )
        response = self._created(request, name, put.digest, kind="manifests")
        if put.subject:
            response.headers["OCI-Subject"] = put.subject
        for tag in tags:
            response.headers.append("OCI-Tag", tag)
        return response

    async def tags(self, request: Request) -> Response:
        name, _ = self._enter(request, "pull")
        found = await asyncio.to_thread(manifests.tags, self.root, name)
        limit, last = request.query_params.get("n", ""), request.query_params.get("last")
        if limit and not limit.isdecimal():
            raise Fault(400, "UNSUPPORTED", "n is a number")
        if last is not None:
            found = [t for t in found if manifests.tag_order(t) > manifests.tag_order(last)]
        count = min(int(limit or _MAX_TAGS), _MAX_TAGS)
        page, headers = found[:count], {}
        if page and len(found) > count:
            query = urlencode({"n": count, "last": page[-1]})
            headers["Link"] = f'<{_base(request)}/{name}/tags/list?{query}>; rel="next"'
        return JSONResponse({"name": name, "tags": page}, headers=headers)

    async def referrers(self, request: Request) -> Response:
        name, _ = self._enter(request, "pull")
        subject, kind = _digest(request.path_params["digest"]), request.query_params.get("artifactType")
        found = await asyncio.to_thread(manifests.referrers, self.root, name, subject, kind)
        body = {"schemaVersion": 2, "mediaType": layout.INDEX_TYPE, "manifests": found}
        headers = {"OCI-Filters-Applied": "artifactType"} if kind else {}
        return JSONResponse(body, media_type=layout.INDEX_TYPE, headers=headers)

    def _enter(self, request: Request, *actions: Action, optional: tuple[Scope, ...] = ()) -> tuple[str, Grants]:
        name = request.path_params["name"]
        layout.repository_path(self.root, name)
        return name, self.guard.check(request, _scope(name, *actions), optional=optional)

    def _created(self, request: Request, name: str, digest: str, *, kind: str = "blobs") -> Response:
        headers = {"Location": f"{_base(request)}/{name}/{kind}/{digest}", "Docker-Content-Digest": digest}
        return Response(status_code=201, headers=headers)


def _scope(repository: str, *actions: Action) -> Scope:
    return Scope(repository, frozenset(actions))


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _digest(text: str) -> str:
    if not is_digest(text):
        raise Fault(400, "DIGEST_INVALID", "not a sha256 or sha512 digest")
    return text
