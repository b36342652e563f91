"""A small Go server as a real image in a real registry, and a seed cache: made once per run."""

import asyncio
import fcntl
import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from app.platforms import local
from app.platforms.base import ImageRef
from app.platforms.local import toolchain
from app.settings import Settings
from tests.images.support import USER, Place

KEY = b"tests only; 32 bytes or more are needed"


@dataclass(frozen=True)
class Toolbox:
    """``seed_home`` has a seed; ``agent`` is the compiled program; ``go`` the command, ``gocache`` a warm cache."""

    seed_home: Path
    agent: Path
    go: Path
    gocache: Path

    def home(self, folder: Path, *, seeded: bool = False) -> Path:
        """Make a SLIPWAY_HOME whose seed is there, or is an empty folder for tests that compile nothing."""
        seed = next((self.seed_home / "local/seed").glob("seed-*"))
        if seeded:
            copy = folder / "local/seed" / seed.name
            shutil.copytree(seed, copy, copy_function=os.link)
            for made in (copy, *copy.iterdir()):
                if made.is_dir():
                    os.chown(made, seed.stat().st_uid, seed.stat().st_gid)
        else:
            (folder / "local/seed" / seed.name).mkdir(parents=True)
        return folder


def make_toolbox(run_folder: Path) -> Toolbox:
    """Make the seed and compile the agent, once for all processes of the run."""
    home, folder = run_folder / "seed-home", run_folder / "agent"
    tools = toolchain.find(Settings(home=home))
    box = Toolbox(home, folder / "agent", tools.need_go("tests") / "bin/go", folder / "gocache")
    with (run_folder / "toolbox.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not box.agent.exists():
            asyncio.run(_seed(home))
            shutil.copytree(next((home / "local/seed").glob("seed-*")), box.gocache)
            for path in box.gocache.rglob("*"):
                path.chmod(path.stat().st_mode | 0o200)
            shutil.copy(Path(__file__).with_name("agent.go"), folder / "main.go")
            (folder / "go.mod").write_text("module agent\n\ngo 1.25\n")
            env = {"CGO_ENABLED": "0", "GOCACHE": str(box.gocache), "HOME": str(folder), "PATH": os.environ["PATH"]}
            env |= {"GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOFLAGS": "-mod=mod"}
            subprocess.run([box.go, "build", "-trimpath", "-o", "draft", "."], cwd=folder, env=env, check=True)
            (folder / "draft").rename(box.agent)
    return box


async def _seed(home: Path) -> None:
    async with local.create(Settings(home=home), KEY) as platform:
        await platform.seed()


def layer_of(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """Return a tar with these files, executable, and with these bare entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o6755
            archive.addfile(info, io.BytesIO(data))
        for info in extra or []:
            archive.addfile(info)
    return out.getvalue()


async def push(
    place: Place, layer: bytes, *, repository: str = "slipway/agent", diff_id: str | None = None, **config: object
) -> ImageRef:
    """Push an image of one layer and return where it is, with a credential that may pull it."""
    packed = _packed(layer)
    inner = {"Entrypoint": ["/app/agent"], "User": "65532", **config}
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": [diff_id or digest(layer)]},
    }
    raw = json.dumps(document).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", raw),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
    }
    body = json.dumps(manifest).encode()
    async with place.http(repository) as http:
        for blob in (packed, raw):
            started = await http.post(f"{place.url}/v2/{repository}/blobs/uploads/")
            assert started.status_code == 202, started.text
            where = httpx_url(place.url, started.headers["location"])
            done = await http.put(where, params={"digest": digest(blob)}, content=blob)
            assert done.status_code == 201, done.text
        headers = {"Content-Type": str(manifest["mediaType"])}
        put = await http.put(f"{place.url}/v2/{repository}/manifests/{digest(body)}", content=body, headers=headers)
        assert put.status_code == 201, put.text
    return ImageRef(registry=place.url, repository=repository, digest=digest(body), username=USER[0], password=USER[1])


@functools.lru_cache(maxsize=4)
def _packed(layer: bytes) -> bytes:
    # The agent is packed for many tests, and how well does not matter to any.
    return gzip.compress(layer, 1, mtime=0)


def httpx_url(base: str, location: str) -> str:
    """Return an upload's address as an absolute URL."""
    return location if location.startswith("http") else base + location


def digest(data: bytes) -> str:
    """Return ``sha256:…``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    """Return what a manifest says of a blob."""
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
