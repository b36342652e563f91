"""The embedded default from outside: source to first 200, wake, fifty callers on a sleeping service, and what idling costs.

One ``slipway serve`` on a home with a warm seed. Baselines of the same run: a bare ``go build`` of the same source with the
same warm cache, and spawning the same binary in the same sandbox to its first 200.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import psutil

from app.platforms.local import sandbox, toolchain
from app.settings import Settings

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
IDLE_SECONDS = 20
SETTLE_SECONDS = 15
"""Until what the measurements before have left behind is cleaned up."""
KEY = "slp_bench"
SOURCE = Path(__file__).parent.parent / "examples/echo-agent"


@contextlib.asynccontextmanager
async def served(home: Path) -> AsyncIterator[tuple[httpx.AsyncClient, int, psutil.Process]]:
    env = {
        **os.environ,
        "SLIPWAY_HOME": str(home),
        "SLIPWAY_PORT": "0",
        "SLIPWAY_GATEWAY_PORT": "0",
        "SLIPWAY_API_KEY": KEY,
    }
    env.pop("DATABASE_URL", None)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.cli",
        "serve",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    text = ""
    try:
        while "home" not in text:
            line = await asyncio.wait_for(child.stdout.readline(), 60)
            if not line:
                raise RuntimeError("serve did not start")
            text += line.decode()
        api, port = re.search(r"API\s+(\S+)", text), re.search(r"<service>\.localhost:(\d+)", text)
        assert api is not None
        assert port is not None
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=api[1], headers=headers, timeout=60, trust_env=False) as client:
            yield client, int(port[1]), psutil.Process(child.pid)
    finally:
        child.terminate()
        await child.wait()


async def first_200(client: httpx.AsyncClient, port: int, name: str, path: str = "/healthz") -> httpx.Response:
    """Ask through the gateway until it answers 200."""
    while True:
        answer = await client.get(f"http://127.0.0.1:{port}{path}", headers={"Host": f"{name}.localhost:{port}"})
        if answer.status_code == 200:
            return answer
        await asyncio.sleep(0.002)


async def source_to_live(client: httpx.AsyncClient, port: int) -> list[float]:
    """Return seconds from POST to the first 200 through the gateway, for sources that differ each time."""
    seconds = []
    for number in range(ROUNDS + 1):
        files = {p.name: p.read_text() for p in SOURCE.iterdir() if p.suffix in {".go", ".mod"}}
        files["main.go"] += f"\n// {number}\n"
        service = {"name": f"bench-{number}", "scale": {"min": 0, "idle_seconds": 600}}
        begun = time.perf_counter()
        answer = await client.post("/v1/builds", json={"source": {"kind": "files", "files": files}, "service": service})
        assert answer.status_code == 202, answer.text
        await first_200(client, port, f"bench-{number}")
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def go_build(home: Path) -> float:
    """Return the median seconds of a bare ``go build`` of the same source, with a copy of the same warm cache."""
    tools = toolchain.find(Settings(home=home))
    go = tools.need_go("bench") / "bin/go"
    seed = next((home / "local/seed").glob("seed-*"))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        shutil.copytree(seed, cache)
        env = {"PATH": "/usr/bin:/bin", "HOME": folder, "GOCACHE": str(cache), "CGO_ENABLED": "0", "GOPROXY": "off"}
        env |= {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GOTELEMETRY": "off", "GOENV": "off", "GOWORK": "off"}
        seconds = []
        for number in range(ROUNDS + 1):
            source = Path(folder) / f"source{number}"
            shutil.copytree(SOURCE, source)
            with (source / "main.go").open("a") as file:
                file.write(f"\n// {number}\n")
            command = [
                str(go),
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags=-s -w -buildid=",
                "-o",
                f"{folder}/agent",
                ".",
            ]
            begun = time.perf_counter()
            subprocess.run(command, cwd=source, env=env, check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


async def wakes(client: httpx.AsyncClient, port: int, name: str) -> list[float]:
    """Return seconds of the first request on a sleeping service."""
    seconds = []
    for _ in range(ROUNDS * 2):
        (await client.post(f"/v1/services/{name}/sleep")).raise_for_status()
        begun = time.perf_counter()
        answer = await client.get(f"http://127.0.0.1:{port}/healthz", headers={"Host": f"{name}.localhost:{port}"})
        assert answer.status_code == 200, answer.text
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


async def spawns(home: Path) -> list[float]:
    """Return seconds from spawning the same binary in the same sandbox to its first 200, with nothing of ours between."""
    settings = Settings(home=home)
    tools = toolchain.find(settings)
    assert tools.bwrap is not None
    rootfs = next(p.parent.parent for p in (home / "local/images").rglob("app/agent"))
    seconds = []
    for number in range(ROUNDS * 2):
        argv = sandbox.service(tools.bwrap, f"slp-bench-{number}", rootfs, "/")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        begun = time.perf_counter()
        child = await asyncio.create_subprocess_exec(
            *argv, "--", "/app/agent", env={"PORT": str(port)}, stderr=asyncio.subprocess.DEVNULL
        )
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200:
                        break
                except httpx.HTTPError:
                    await asyncio.sleep(0.001)
        seconds.append(time.perf_counter() - begun)
        for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await child.wait()
    return seconds[1:]


async def fifty(client: httpx.AsyncClient, port: int, name: str) -> tuple[float, int]:
    """Send 50 requests at once to a sleeping service; return seconds until all are answered and how many starts it took."""
    (await client.post(f"/v1/services/{name}/sleep")).raise_for_status()
    before = (await client.get(f"/v1/services/{name}")).json()["starts"]
    begun = time.perf_counter()
    async with httpx.AsyncClient(timeout=60, trust_env=False) as callers:
        url, host = f"http://127.0.0.1:{port}/healthz", {"Host": f"{name}.localhost:{port}"}
        answers = await asyncio.gather(*(callers.get(url, headers=host) for _ in range(50)))
    seconds = time.perf_counter() - begun
    assert all(a.status_code == 200 for a in answers)
    return seconds, (await client.get(f"/v1/services/{name}")).json()["starts"] - before


async def idling(serve: psutil.Process, url: str) -> tuple[float, float]:
    """Return transactions per second and MiB of Python while nothing happens."""
    await asyncio.sleep(SETTLE_SECONDS)
    connection = await asyncpg.connect(url)
    count = "select sum(xact_commit + xact_rollback) from pg_stat_database where datname = current_database()"
    before, begun = await connection.fetchval(count), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    rate = float(await connection.fetchval(count) - before - 1) / (time.perf_counter() - begun)
    await connection.close()
    return rate, serve.memory_info().rss / 2**20


def database_url(serve: psutil.Process, home: Path) -> str:
    """Return the embedded server's URL as its owner knows it."""
    server = next(p for p in serve.children(recursive=True) if p.name() == "postgres")
    folder = next(a.split("=", 1)[1] for a in server.cmdline() if a.startswith("unix_socket_directories="))
    password = (home / "postgres.password").read_text() if (home / "postgres.password").exists() else ""
    return f"postgresql://slipway:{password}@/slipway?host={folder}"


async def run() -> dict[str, float]:
    """Measure; prints a table and returns the figures."""
    folder = Path(tempfile.mkdtemp(prefix="slipway-bench-"))
    folder.chmod(0o711)
    try:
        home = folder / "home"
        env = {**os.environ, "SLIPWAY_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "app.cli", "seed"], check=True, env=env, capture_output=True)
        async with served(home) as (client, port, serve):
            live = statistics.median(await source_to_live(client, port))
            build = await asyncio.to_thread(go_build, home)
            wake = statistics.median(await wakes(client, port, "bench-1"))
            spawn = statistics.median(await spawns(home))
            crowd, starts = await fifty(client, port, "bench-1")
            rate, memory = await idling(serve, database_url(serve, home))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  source to first 200         {live:8.2f} s    (wanted: 2.0)")
    print(f"  bare go build               {build:8.2f} s    baseline; ratio {live / build:.1f} (wanted: 4)")
    print(f"  wake through the gateway    {wake * 1000:8.1f} ms   (wanted: 25)")
    print(f"  spawn in the same sandbox   {spawn * 1000:8.1f} ms   baseline; ratio {wake / spawn:.1f} (wanted: 3)")
    print(f"  50 callers, one sleeper     {crowd * 1000:8.1f} ms   {starts} start (wanted: 1)")
    print(f"  idle                        {rate:8.2f} tx/s (wanted: 5), {memory:.0f} MiB of Python (wanted: 200)")
    return {
        "live": live,
        "go_build": build,
        "wake": wake,
        "spawn": spawn,
        "starts": starts,
        "idle_tps": rate,
        "rss": memory,
    }


if __name__ == "__main__":
    asyncio.run(run())
