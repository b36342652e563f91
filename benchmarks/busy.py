"""Requests through the gateway of a whole ``slipway serve`` while it is busy: a source of 45 MB is taken in, compiled, pushed
and unpacked as an image of 50 MB. All that hashing and packing must not hold up the loop that the gateway shares.
"""

import asyncio
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.embedded import SOURCE, first_200, served

CALM_SECONDS = 3.0
PAUSE_SECONDS = 0.002
BLOB_BYTES = 44 * 2**20
"""Incompressible, so that the image comes to about 50 MB."""
WANTED_MS = 20.0
BUILD_SECONDS = 120.0


async def ask(port: int, name: str, stop: asyncio.Event) -> list[float]:
    """Send one request after the other over one connection until told to stop; returns the milliseconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /healthz HTTP/1.1\r\nHost: {name}.localhost:{port}\r\n\r\n".encode()
    took = []
    try:
        while not stop.is_set():
            begun = time.perf_counter()
            writer.write(request)
            answer = await asyncio.wait_for(reader.read(65536), 30)
            took.append((time.perf_counter() - begun) * 1000)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"unexpected answer: {answer[:200]!r}")
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        writer.close()
        await writer.wait_closed()
    return took


def large() -> bytes:
    """Return a source whose program carries a large file, packed."""
    files = {p.name: p.read_bytes() for p in SOURCE.iterdir() if p.suffix in {".go", ".mod"}}
    files["blob.go"] = (
        b'package main\n\nimport (\n\t_ "embed"\n\t"os"\n)\n\n//go:embed blob\nvar blob string\n\n'
        b"// The linker leaves out what nothing can reach.\n"
        b"func init() {\n\tif len(os.Args) > 999 {\n\t\tos.Stdout.WriteString(blob)\n\t}\n}\n"
    )
    files["blob"] = os.urandom(BLOB_BYTES)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


async def deploy(client: httpx.AsyncClient, source: dict[str, object], name: str) -> dict[str, object]:
    """Build and deploy; returns the build once it has succeeded."""
    service = {"name": name, "scale": {"min": 0, "idle_seconds": 600}, "memory_mb": 512}
    answer = await client.post("/v1/builds", json={"source": source, "service": service})
    answer.raise_for_status()
    async with asyncio.timeout(BUILD_SECONDS):
        while (build := (await client.get(answer.headers["location"])).json())["status"] not in {"succeeded", "failed"}:
            await asyncio.sleep(0.2)
    assert build["status"] == "succeeded", build["failure"]
    return dict(build)


async def run() -> dict[str, float]:
    """Measure; prints and returns milliseconds: p50, p99 and the worst, calm and busy."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        env = {**os.environ, "SLIPWAY_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "app.cli", "seed"], check=True, env=env, capture_output=True)
        source = await asyncio.to_thread(large)
        async with served(home) as (client, port, _):
            files = {p.name: p.read_text() for p in SOURCE.iterdir() if p.suffix in {".go", ".mod"}}
            await deploy(client, {"kind": "files", "files": files}, "bench")
            await first_200(client, port, "bench")
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(CALM_SECONDS, stop.set)
            calm = await ask(port, "bench", stop)
            stop = asyncio.Event()
            asking = asyncio.create_task(ask(port, "bench", stop))
            digest = (await client.post("/v1/sources", content=source)).raise_for_status().json()["digest"]
            build = await deploy(client, {"kind": "upload", "digest": digest}, "large")
            stop.set()
            busy = await asking
    c, b = statistics.quantiles(calm, n=100), statistics.quantiles(busy, n=100)
    image = build["artifact"]["size_bytes"] / 2**20  # type: ignore[index]
    print(f"  calm              p50 {c[49]:6.2f} ms  p99 {c[98]:6.2f} ms  worst {max(calm):7.2f} ms")
    print(
        f"  building          p50 {b[49]:6.2f} ms  p99 {b[98]:6.2f} ms  worst {max(busy):7.2f} ms  (p99 wanted: {WANTED_MS:.0f})"
    )
    print(f"  {len(busy)} requests beside a build with an image of {image:.0f} MiB")
    return {"calm_p99_ms": c[98], "busy_p50_ms": b[49], "busy_p99_ms": b[98], "busy_worst_ms": max(busy)}


if __name__ == "__main__":
    asyncio.run(run())
