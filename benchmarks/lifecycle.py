"""Full lifecycles per second: POST, claim and completion over HTTP, with one API and one worker process and a platform that
does nothing; beside it the same without HTTP on the API's side, and pgbench's ceiling for the least SQL that would do."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import asyncpg
from pydantic import SecretStr
from sqlalchemy import select

from app import db
from app.builds import complete, report, submit
from app.builds.caller import Caller
from app.builds.completion import Completion
from app.embedded.binaries import installed
from app.embedded.postgres import EmbeddedPostgres
from app.main import ensure_key, open_context
from app.models import Project
from app.requests import BuildRequest
from app.secrets import Keyring, make_keys, parse_keys
from app.settings import Settings
from benchmarks import noop
from benchmarks.wire import Wire, connected

COUNT = int(os.environ.get("BENCH_LIFECYCLES", "400"))
IN_FLIGHT = 24
PGBENCH_SECONDS = 8
FILES = {"go.mod": "module a\n\ngo 1.25\n", "main.go": "package main\n\nfunc main() {}\n"}


def body(number: int) -> dict[str, object]:
    service = {"name": f"s{number}", "env": {"A": "1"}, "scale": {"min": 0, "idle_seconds": 3600}}
    return {"source": {"kind": "files", "files": FILES}, "platform": "noop", "service": service}


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Template:
    """One small image on disk, hard-linked into each run's repository: pushing is not what is measured here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w"):
            pass
        raw = layer.getvalue()
        packed = gzip.compress(raw, mtime=0)
        config = json.dumps(
            {"os": "linux", "architecture": "amd64", "config": {"User": "65532:65532", "Entrypoint": ["/app/agent"]},
             "rootfs": {"type": "layers", "diff_ids": [sha(raw)]}}
        ).encode()  # fmt: skip
        kind = "application/vnd.oci.image"
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
             "config": {"mediaType": f"{kind}.config.v1+json", "digest": sha(config), "size": len(config)},
             "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": sha(packed), "size": len(packed)}]}
        ).encode()  # fmt: skip
        self.digest, self.size = sha(manifest), len(manifest)
        self.folder = root.parent / "template"
        blobs = self.folder / "blobs/sha256"
        blobs.mkdir(parents=True)
        for data in (packed, config, manifest):
            (blobs / sha(data)[7:]).write_bytes(data)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = {"mediaType": f"{kind}.manifest.v1+json", "digest": self.digest, "size": self.size}
        index = {"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": [entry]}
        (self.folder / "index.json").write_text(json.dumps(index))
        self.files = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()]

    def put(self, repository: str) -> None:
        place = self.root / repository
        (place / "blobs/sha256").mkdir(parents=True)
        for name in self.files:
            os.link(self.folder / name, place / name)

    def completion(self, repository: str, source: str) -> dict[str, object]:
        image = {"repository": repository, "digest": self.digest, "size": self.size}
        return {
            "instance": "i", "status": "succeeded", "exit_code": 0, "image": image, "source": {"digest": source, "commit": None},
            "toolchain": {"go": "go1.27"}, "isolation": "netns", "modules": [], "diagnostics": [], "timings": {"compile": 0.5},
        }  # fmt: skip


@contextlib.asynccontextmanager
async def process(kind: str, env: dict[str, str]) -> AsyncIterator[None]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.process", kind, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        line = await asyncio.wait_for(child.stdout.readline(), 30)
        if line.strip() != b"ready":
            raise RuntimeError(f"the {kind} did not start")
        yield
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


IN_SIGHT = """
    select b.id, b.status, b.source_digest, r.id as run_id, r.key_id
    from build b left join run r on r.build_id = b.id
    where b.id = any($1) and b.status in ('building', 'succeeded')
"""
Start = Callable[[int], Awaitable[str]]
Finish = Callable[[asyncpg.Record], Coroutine[None, None, None]]


async def drive(connection: asyncpg.Connection, start: Start, finish: Finish, count: int) -> float:
    """Keep IN_FLIGHT lifecycles going until ``count`` have succeeded; returns lifecycles per second.

    ``start`` returns a new build's id, ``finish`` does its builder's part.
    """
    begun, started, done = time.perf_counter(), 0, 0
    open_builds: set[str] = set()
    reported: set[str] = set()

    async def begin(number: int) -> None:
        open_builds.add(await start(number))

    async with asyncio.TaskGroup() as tasks:
        while done < count:
            for row in await connection.fetch(IN_SIGHT, list(open_builds)):
                if row["status"] == "succeeded":
                    open_builds.discard(row["id"])
                    done += 1
                elif row["id"] not in reported:
                    reported.add(row["id"])
                    tasks.create_task(finish(row))
            while started < min(count, done + IN_FLIGHT):
                tasks.create_task(begin(started))
                started += 1
            if time.perf_counter() - begun > 120:
                states = await connection.fetch("select status, count(*) from build group by 1")
                raise RuntimeError(f"stuck: {states}")
            await asyncio.sleep(0.01)
    return count / (time.perf_counter() - begun)


def pgbench(url: str) -> float:
    """Return lifecycles per second of the least SQL, with as many clients as ours has in flight at best."""
    folder = Path(__file__).parent / "pgbench"
    programs = installed().bin
    subprocess.run([programs / "psql", "-qX", "-f", folder / "schema.sql", url], check=True, capture_output=True)
    command = [
        str(programs / "pgbench"),
        "-n",
        "-M",
        "prepared",
        "-f",
        str(folder / "lifecycle.sql"),
        "-c",
        "8",
        "-j",
        "2",
    ]
    done = subprocess.run([*command, "-T", str(PGBENCH_SECONDS), url], check=True, capture_output=True, text=True)
    match = re.search(r"^tps = ([0-9.]+)", done.stdout, re.M)
    assert match is not None, done.stdout
    return float(match[1])


async def run() -> dict[str, float]:
    """Measure; prints a table and returns the figures."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        async with EmbeddedPostgres(home / "pg") as server:
            assert server.url is not None
            url = server.url
            async with database(url, "ceiling") as ceiling_url:
                ceiling = await asyncio.to_thread(pgbench, ceiling_url)
            async with database(url, "http") as http_url:
                http = await _over_http(http_url, home / "a")
            async with database(url, "inprocess") as inner_url:
                inner = await _in_process(inner_url, home / "b")
    print(f"  lifecycles over HTTP        {http:8.0f} /s   (wanted: 60)")
    print(f"  lifecycles, API in process  {inner:8.0f} /s   (wanted: 200)")
    print(f"  pgbench, the least SQL      {ceiling:8.0f} /s   baseline")
    print(f"  over HTTP / pgbench         {http / ceiling:8.3f}      (wanted: 0.06)")
    return {"http": http, "in_process": inner, "pgbench": ceiling, "ratio": http / ceiling}


@contextlib.asynccontextmanager
async def database(url: str, name: str) -> AsyncIterator[str]:
    connection = await asyncpg.connect(url)
    await connection.execute(f'create database "{name}"')
    await connection.close()
    yield re.sub(r"/[a-z_]*\?", f"/{name}?", url)


def environment(url: str, home: Path, port: int) -> dict[str, str]:
    return {
        **os.environ, "DATABASE_URL": url, "SLIPWAY_HOME": str(home), "SLIPWAY_PORT": str(port), "SLIPWAY_API_KEY": "slp_bench",
        "SLIPWAY_SECRET_KEYS": make_keys(), "SLIPWAY_PROJECT_CONCURRENCY": "100000", "SLIPWAY_PROJECT_QUEUED": "1000000",
        "SLIPWAY_PROJECT_BUILDS_PER_DAY": "10000000", "SLIPWAY_PROJECT_SERVICES": "1000000",
    }  # fmt: skip


async def report_over_http(wire: Wire, keyring: Keyring, template: Template, row: asyncpg.Record) -> float:
    """Do a builder's part: claim, push and the signed report; returns when that was sent, in Unix seconds."""
    run_id, token = row["run_id"], keyring.run_token(row["run_id"], row["key_id"])
    auth = {"Authorization": f"Bearer {token}"}
    status, answer = await wire.post(f"/v1/runs/{run_id}/claim", b'{"instance": "i"}', auth)
    assert status == 200, answer
    repository = json.loads(answer)["image"]["repository"]
    template.put(repository)
    raw = json.dumps(template.completion(repository, row["source_digest"])).encode()
    sent, message = time.time(), f"msg_{run_id}"
    mac = hmac.digest(token.encode(), f"{message}.{int(sent)}.".encode() + raw, "sha256")
    signature = "v1," + base64.b64encode(mac).decode()
    signed = {"webhook-id": message, "webhook-timestamp": str(int(sent)), "webhook-signature": signature}
    status, answer = await wire.post(f"/v1/runs/{run_id}/complete", raw, auth | signed)
    assert status == 200, answer
    return sent


async def _over_http(url: str, home: Path) -> float:
    await db.migrate(url)
    port = 18999
    env = environment(url, home, port)
    keyring_text = env["SLIPWAY_SECRET_KEYS"]
    keyring = parse_keys(keyring_text)
    template = Template(home / "registry")
    connection = await asyncpg.connect(url)
    async with process("api", env), process("worker", env), connected(port) as wire:

        async def start(number: int) -> str:
            order = json.dumps(body(number)).encode()
            status, answer = await wire.post("/v1/builds", order, {"Authorization": "Bearer slp_bench"})
            assert status == 202, answer
            return str(json.loads(answer)["id"])

        async def finish(row: asyncpg.Record) -> None:
            await report_over_http(wire, keyring, template, row)

        await drive(connection, start, finish, 50)
        rate = await drive(connection, lambda n: start(n + 1000), finish, COUNT)
    await connection.close()
    return rate


async def _in_process(url: str, home: Path) -> float:
    await db.migrate(url)
    env = environment(url, home, 18998)
    template = Template(home / "registry")
    connection = await asyncpg.connect(url)
    settings = Settings(
        database_url=SecretStr(url),
        home=home,
        secret_keys=SecretStr(env["SLIPWAY_SECRET_KEYS"]),
        api_key=SecretStr("slp_bench"),
        project_concurrency=100000,
    )
    async with process("worker", env), open_context(settings, url, hold_local=False) as context:
        server = await noop.join(context.catalog)
        async with context.sessions.begin() as session:
            await ensure_key(session, settings)
            project = (await session.execute(select(Project))).scalar_one()

        async def start(number: int) -> str:
            async with db.transaction(context.pool) as session:
                build, _ = await submit.submit(context, session, project, BuildRequest.model_validate(body(number)))
            return build.id

        async def finish(row: asyncpg.Record) -> None:
            orders = await report.claim(context, Caller(row["run_id"], row["key_id"]), "i")
            repository = orders["image"]["repository"]
            template.put(repository)
            completion = Completion.model_validate(template.completion(repository, row["source_digest"]))
            await complete.complete(context, Caller(row["run_id"], row["key_id"]), "msg_1", completion)

        await drive(connection, start, finish, 50)
        rate = await drive(connection, lambda n: start(n + 1000), finish, COUNT)
        server.close()
    await connection.close()
    return rate


if __name__ == "__main__":
    asyncio.run(run())
