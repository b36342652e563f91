"""A small Go server as a real image in a real registry, and a seed cache.

What takes long is made once per machine and account, and kept in the temporary folder for all runs to come, under a key of
all that it is made of.
"""

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
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.platforms import local
from app.platforms.base import ImageRef
from app.platforms.local import seed, toolchain
from app.settings import Settings
from tests.images.support import USER, Place

KEY = b"tests only; 32 bytes or more are needed"


@dataclass(frozen=True)
class Toolbox:
    """``seed`` is read-only; ``agent`` is the compiled program; ``go`` the command, ``gocache`` a warm cache to build with."""

    seed: Path
    agent: Path
    go: Path
    gocache: Path

    def home(self, folder: Path, *, seeded: bool = False) -> Path:
        """Make a SLIPWAY_HOME whose seed is there, or is an empty folder for tests that compile nothing."""
        copy = folder / "local/seed" / self.seed.name
        if seeded:
            shutil.copytree(self.seed, copy, copy_function=link)
            for made in (copy, *copy.iterdir()):
                if made.is_dir():
                    os.chown(made, self.seed.stat().st_uid, self.seed.stat().st_gid)
        else:
            copy.mkdir(parents=True)
        return folder


def make_toolbox() -> Toolbox:
    """Make the seed and compile the agent, or find them; processes that ask at once wait for the first."""
    tools = toolchain.find(Settings())
    source = Path(__file__).with_name("agent.go")
    of = [tools.go_version.encode(), Path(seed.__file__).read_bytes(), source.read_bytes()]
    folder = machine_folder() / f"toolbox-{hashlib.sha256(b''.join(of)).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    seeds = folder / "home/local/seed"
    go, agent, gocache = tools.need_go("tests") / "bin/go", folder / "agent/agent", folder / "gocache"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not agent.exists():
            asyncio.run(_seed(folder / "home"))
            shutil.rmtree(gocache, ignore_errors=True)
            shutil.copytree(next(seeds.glob("seed-*")), gocache)
            for path in (gocache, *gocache.rglob("*")):
                path.chmod(path.stat().st_mode | 0o200)
            agent.parent.mkdir(exist_ok=True)
            shutil.copy(source, agent.parent / "main.go")
            (agent.parent / "go.mod").write_text("module agent\n\ngo 1.25\n")
            env = {"CGO_ENABLED": "0", "GOCACHE": str(gocache), "HOME": str(folder), "PATH": os.environ["PATH"]}
            env |= {"GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOFLAGS": "-mod=mod"}
            subprocess.run([go, "build", "-trimpath", "-o", "draft", "."], cwd=agent.parent, env=env, check=True)
            (agent.parent / "draft").rename(agent)
    return Toolbox(next(seeds.glob("seed-*")), agent, go, gocache)


def machine_folder() -> Path:
    """Return this account's folder for what all runs on this machine share; nobody else may have put it there."""
    folder = Path(tempfile.gettempdir()) / f"slipway-tests-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    assert (found.st_uid, found.st_mode) == (os.geteuid(), 0o40700), f"{folder} is not only ours; remove it"
    return folder


def link(source: str, target: str) -> None:
    """Make a hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


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
