"""What a builder says to a control plane, one step at a time and over HTTP alone."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

Json = dict[str, Any]


@dataclass
class Builder:
    """What a builder does, one step at a time, over HTTP alone."""

    http: httpx.AsyncClient
    run_id: str
    token: str
    instance: str = "machine-1"
    webhook_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(8)}")

    def other(self, **changes: Any) -> "Builder":
        return replace(self, **changes)

    async def post(self, verb: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        body = {"instance": self.instance, **body}
        return await self.http.post(f"/v1/runs/{self.run_id}/{verb}", json=body, headers=headers)

    async def claim(self) -> Json:
        answer = await self.post("claim")
        assert answer.status_code == 200, answer.text
        orders: Json = answer.json()
        return orders

    async def log(self, *lines: str, seq: int = 0) -> httpx.Response:
        return await self.post("logs", seq=seq, lines=[{"t": time.time(), "s": "stdout", "m": line} for line in lines])

    async def source(self) -> bytes:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = await self.http.get(f"/v1/runs/{self.run_id}/source", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.content

    async def push(self, *, layer: bytes = b"a layer", **config: Any) -> Json:
        """Push a small image by the grant and return what a completion says of it."""
        answer = await self.post("push-grant")
        assert answer.status_code == 200, answer.text
        grant = answer.json()
        inner = {"User": "65532:65532", "Entrypoint": ["/app"]} | config.pop("config", {})
        document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}} | config
        blob = json.dumps(document | {"config": inner}).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor("application/vnd.oci.image.config.v1+json", blob),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
            }
        ).encode()
        base, headers = f"{grant['registry']}/v2/{grant['repository']}", {"Authorization": f"Bearer {grant['token']}"}
        http = self.http
        for data in (layer, blob):
            begun = await http.post(f"{base}/blobs/uploads/", headers=headers)
            assert begun.status_code == 202, begun.text
            where = httpx.URL(grant["registry"]).join(begun.headers["location"])
            done = await http.put(where.copy_merge_params({"digest": digest(data)}), content=data, headers=headers)
            assert done.status_code == 201, done.text
        put = await http.put(
            f"{base}/manifests/{digest(manifest)}",
            content=manifest,
            headers=headers | {"Content-Type": "application/vnd.oci.image.manifest.v1+json"},
        )
        assert put.status_code == 201, put.text
        size = len(layer) + len(blob) + len(manifest)
        return {"repository": grant["repository"], "digest": digest(manifest), "size": size}

    def sign(self, raw: bytes, stamp: object) -> str:
        mac = hmac.digest(self.token.encode(), f"{self.webhook_id}.{stamp}.".encode() + raw, hashlib.sha256)
        return f"v1,{base64.b64encode(mac).decode()}"

    async def complete(self, body: Json | None = None, *, raw: bytes | None = None, **how: Any) -> httpx.Response:
        """Send the completion, signed; ``how`` may say another ``token``, ``signature``, ``timestamp``, ``run_id``."""
        raw = raw if raw is not None else json.dumps({"instance": self.instance, **(body or {})}).encode()
        stamp = str(how.get("timestamp", int(time.time())))
        headers = {
            "Authorization": f"Bearer {how.get('token', self.token)}",
            "Content-Type": "application/json",
            "webhook-id": self.webhook_id,
            "webhook-timestamp": stamp,
            "webhook-signature": how.get("signature", self.sign(raw, stamp)),
        }
        url = f"/v1/runs/{how.get('run_id', self.run_id)}/complete"
        return await self.http.post(url, content=raw, headers=headers)

    def success(self, image: Json, orders: Json, /, **more: Any) -> Json:
        """Return the body of a good completion."""
        return {
            "status": "succeeded",
            "exit_code": 0,
            "image": image,
            "source": {"digest": orders["source"]["digest"], "commit": None},
            "toolchain": {"go": "go1.25.3", "goarch": "amd64", "builder": "test"},
            "isolation": "netns",
            "timings": {"compile": 0.5},
        } | more

    async def finish(self, **image: Any) -> Json:
        """Do all of it: claim, push, complete; returns the answer to the completion."""
        orders = await self.claim()
        answer = await self.complete(self.success(await self.push(**image), orders))
        assert answer.status_code == 200, answer.text
        told: Json = answer.json()
        return told

    async def fail(self, reason: str, message: str | None = None, **more: Any) -> httpx.Response:
        await self.post("claim")
        return await self.complete({"status": "failed", "reason": reason, "message": message, **more})


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media_type: str, data: bytes) -> Json:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
