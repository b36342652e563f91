"""How long a caller and a build wait: POST at a steady rate beside a bare route that makes three INSERTs, and, with nothing
else going on, from POST to the builder's launch and from the builder's report to the deploy."""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from app import db
from app.embedded.postgres import EmbeddedPostgres
from app.secrets import parse_keys
from benchmarks.lifecycle import IN_SIGHT, Template, body, database, environment, process, report_over_http
from benchmarks.wire import Wire, connected

RATE = 100
SECONDS = 15
IDLE_BUILDS = 60
API_PORT, BARE_PORT = 18997, 18996
BEARER = {"Authorization": "Bearer slp_bench"}
SCHEMA = """
    create table one (id bigint generated always as identity primary key, data jsonb not null);
    create table two (like one including all); create table three (like one including all);
"""
HANDLES = """
    select r.handle as launched, l.handle as deployed from build b
    join run r on r.build_id = b.id left join release l on l.build_id = b.id where b.id = $1
"""


async def run() -> dict[str, float]:
    """Measure; prints and returns milliseconds."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        async with EmbeddedPostgres(home / "pg") as server:
            assert server.url is not None
            async with database(server.url, "bare") as url:
                figures = await _bare(url, home)
            async with database(server.url, "latency") as url:
                await db.migrate(url)
                env = environment(url, home / "a", API_PORT)
                figures |= await _posts(env)
                figures |= await _idle(url, home / "a", env)
    figures["post_over_bare_p50"] = figures["post_p50_ms"] / figures["bare_p50_ms"]
    wanted = {"post_p50_ms": 15.0, "post_p99_ms": 60.0, "post_to_launch_p50_ms": 30.0, "report_to_deploy_p50_ms": 30.0}
    for name, value in figures.items():
        print(f"  {name:<26}{value:8.2f}" + (f"   (wanted: {wanted[name]:g})" if name in wanted else ""))
    return figures


async def _bare(url: str, home: Path) -> dict[str, float]:
    connection = await asyncpg.connect(url)
    await connection.execute(SCHEMA)
    await connection.close()
    async with process("bare", environment(url, home, BARE_PORT)), connected(BARE_PORT) as wire:
        return _quantiles("bare", await steady(lambda number: _post(wire, "/builds", number, 202)))


async def _posts(env: dict[str, str]) -> dict[str, float]:
    async with process("api", env), connected(API_PORT) as wire:
        return _quantiles("post", await steady(lambda number: _post(wire, "/v1/builds", number, 202)))


async def _post(wire: Wire, path: str, number: int, wanted: int) -> bytes:
    status, answer = await wire.post(path, json.dumps(body(number)).encode(), BEARER)
    assert status == wanted, answer
    return answer


async def steady(send: Callable[[int], Awaitable[object]]) -> list[float]:
    """Send at ``RATE``, whether or not the ones before were answered; returns milliseconds from when each was due."""
    await asyncio.gather(*(send(-n) for n in range(1, 20)))
    took: list[float] = []
    begun = time.perf_counter() + 0.1

    async def one(number: int) -> None:
        due = begun + number / RATE
        await asyncio.sleep(due - time.perf_counter())
        await send(number)
        took.append((time.perf_counter() - due) * 1000)

    await asyncio.gather(*(one(number) for number in range(RATE * SECONDS)))
    return took


async def _idle(url: str, home: Path, env: dict[str, str]) -> dict[str, float]:
    """One build after the other; the platform that does nothing notes in its handles when it was called."""
    keyring, template = parse_keys(env["SLIPWAY_SECRET_KEYS"]), Template(home / "registry")
    launches: list[float] = []
    deploys: list[float] = []
    connection = await asyncpg.connect(url)
    async with process("api", env), process("worker", env), connected(API_PORT) as wire:
        await connection.execute("delete from pgqueuer.pgqueuer")  # the builds before are not what is measured
        await connection.execute("update build set status = 'canceled' where status = 'queued'")
        for number in range(IDLE_BUILDS):
            sent = time.time()
            build_id = json.loads(await _post(wire, "/v1/builds", 100_000 + number, 202))["id"]
            row = await _until(connection, build_id, "building")
            launched = await connection.fetchrow(HANDLES, build_id)
            launches.append((_called_at(launched["launched"]) - sent) * 1000)
            sent = await report_over_http(wire, keyring, template, row)
            await _until(connection, build_id, "succeeded")
            deployed = await connection.fetchrow(HANDLES, build_id)
            deploys.append((_called_at(deployed["deployed"]) - sent) * 1000)
    await connection.close()
    return {
        "post_to_launch_p50_ms": statistics.median(launches[10:]),
        "report_to_deploy_p50_ms": statistics.median(deploys[10:]),
    }


async def _until(connection: asyncpg.Connection, build_id: str, status: str) -> asyncpg.Record:
    async with asyncio.timeout(30):
        while True:
            row = await connection.fetchrow(IN_SIGHT, [build_id])
            if row is not None and row["status"] == status:
                return row
            await asyncio.sleep(0.005)


def _called_at(handle: str) -> float:
    return float(handle.rpartition("@")[2])


def _quantiles(name: str, took: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took, n=100)
    return {f"{name}_p50_ms": cuts[49], f"{name}_p99_ms": cuts[98]}
