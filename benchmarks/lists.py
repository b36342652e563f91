"""Pages of builds where there are a million (``BENCH_BUILDS``): the first and deep ones, by each filter, over HTTP and as SQL
beside a walk along the primary key. Of the builds nine in ten are one project's, the caller's."""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from app import db
from app.api import lists
from app.api.deps import encode_cursor
from app.embedded.postgres import EmbeddedPostgres
from app.ids import first_id
from app.models import Project
from app.sql import as_json
from benchmarks.latency import API_PORT, BEARER
from benchmarks.lifecycle import database, environment, process
from benchmarks.wire import Wire, connected

BUILDS = int(os.environ.get("BENCH_BUILDS", "1000000"))
REQUESTS = int(os.environ.get("BENCH_REQUESTS", "200"))
"""Per filter, of the first page and of deep ones each."""
PAGE = 50
WANTED_MS = 20.0
SPAN = timedelta(days=100)
SERVICES = 1000
WARM = 10
DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]
NONE: dict[str, Any] = dict.fromkeys(("status", "platform", "service", "since", "until", "cursor")) | {"labels": []}

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "status, most": {"status": "succeeded"},
    "status, few": {"status": "canceled"},
    "status, open": {"status": "building"},
    "platform, most": {"platform": "fly"},
    "platform, few": {"platform": "local"},
    "service": {"service": "s7"},
    "service, name used twice": {"service": "s8"},
    "label, all": {"labels": ["env=live"]},
    "label, few": {"labels": ["customer=7"]},
    "time": {"since": 0.2, "until": 0.6},
    "status + platform": {"status": "failed", "platform": "koyeb"},
    "status + label": {"status": "failed", "labels": ["customer=7"]},
    "service + status, none": {"service": "s7", "status": "building"},
    "two labels": {"labels": ["env=live", "customer=7"]},
}

DIGIT = "substr('0123456789abcdefghijklmnopqrstuv', (ms * 4 >> {} & 31)::int + 1, 1)"
FILL = f"""
    insert into build (id, project_id, status, builder_platform, service_platform, source, source_digest, spec, service_id,
        labels, created_at, updated_at, finished_at, sequence)
    select 'bld_' || {" || ".join(DIGIT.format(5 * n) for n in reversed(range(10)))} || lpad(n::text, 16, '0'),
        case when n % 10 = 0 then 'prj_' || n % 200 / 10 else $1 end,
        case when n > $2 - 50 then 'building' when n % 11 = 0 then 'failed' when n % 997 = 0 then 'canceled' else 'succeeded' end,
        platform, platform, '{{"kind": "archive", "digest": "sha256:0"}}', 'sha256:' || lpad(to_hex(n), 64, '0'),
        '{{"build": {{"kind": "go", "package": ".", "goarch": "amd64"}}, "builder": {{"platform": "fly", "timeout": 600}}}}',
        case when n % 10 = 0 then null else 'svc_' || n * 7919 % {SERVICES} end,
        jsonb_build_object('env', case when n % 4 = 0 then 'test' else 'live' end, 'customer', (n * 31 % 500)::text),
        at, at, at, n
    from generate_series(1, $2::bigint) n,
        lateral (select $3::timestamptz + n * make_interval(secs => $4::float8 / $2) as at) a,
        lateral (select (extract(epoch from at) * 1000)::bigint as ms,
            case when n % 10 < 7 then 'fly' when n % 5000 = 9 then 'local' else 'koyeb' end as platform) b
"""
LABELS = """
    insert into build_label (project_id, key, value, build_id)
    select project_id, l.key, l.value, b.id from build b cross join jsonb_each_text(labels) l order by 1, 2, 3, 4
"""
OTHERS = "insert into project (id, name) select 'prj_' || n, 'p' || n from generate_series(0, 19) n"
SERVED = f"""
    insert into service (id, project_id, name, host, platform, status, deleted_at)
    select 'svc_' || n, $1, 's' || case when n = 9 then 8 else n end, 's' || n, 'fly', 'asleep', case when n = 9 then now() end
    from generate_series(0, {SERVICES - 1}) n
"""


async def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        async with EmbeddedPostgres(home / "pg") as server:
            assert server.url is not None
            async with database(server.url, "lists") as url:
                await db.migrate(url)
                async with process("api", environment(url, home / "a", API_PORT)), connected(API_PORT) as wire:
                    connection = await asyncpg.connect(url)
                    begin = datetime.now(UTC) - SPAN
                    await _fill(connection, begin)
                    await _measure(connection, wire, begin)
                    await connection.close()


async def _fill(connection: asyncpg.Connection, begin: datetime) -> None:
    started = time.perf_counter()
    project = await connection.fetchval("select id from project")
    await connection.execute("set session_replication_role = replica")  # no trigger for each row: labels come at once
    await connection.execute(OTHERS)
    await connection.execute(SERVED, project)
    await connection.execute(FILL, project, BUILDS, begin, SPAN.total_seconds())
    await connection.execute(LABELS)
    await connection.execute("reset session_replication_role")
    for table in ("build", "build_label", "service"):
        await connection.execute(f"vacuum analyze {table}")
    await connection.execute("checkpoint")
    print(f"  {BUILDS:,} builds, made in {time.perf_counter() - started:.0f} s", flush=True)


async def _measure(connection: asyncpg.Connection, wire: Wire, begin: datetime) -> None:
    chance = random.Random(1)
    # Where builds of the older half would be: their page is the same to a list as any other.
    deep = [first_id("bld", begin + SPAN * chance.uniform(0.01, 0.5)) for _ in range(REQUESTS + WARM)]
    first = [None] * len(deep)
    walk = f"select * from build where id < $1 order by id desc limit {PAGE + 1}"
    print(
        f"  {'ms, p50 / p99':<28}"
        + "".join(f"{w:>16}" for w in ("first, HTTP", "deep, HTTP", "first, SQL", "deep, SQL"))
    )
    baseline = [await _timed([partial(connection.fetch, walk, c or "c") for c in where]) for where in (first, deep)]
    print(f"  {'the primary key, baseline':<28}{'':>32}{''.join(_cell(c) for c in baseline)}", flush=True)
    worst = 0.0
    project = Project(id=await connection.fetchval("select id from project where name = 'default'"))
    for name, narrowed in FILTERS.items():
        wish = narrowed | {k: begin + SPAN * narrowed[k] for k in ("since", "until") if k in narrowed}
        asked = [await _timed([partial(_ask, wire, _path(wish, c)) for c in where]) for where in (first, deep)]
        worst = max(worst, *(p99 for _, p99 in asked))
        for where in (first, deep):
            sql = [_statement(project, wish, c) for c in where]
            asked.append(await _timed([partial(connection.fetch, text, *values) for text, values in sql]))
        print(f"  {name:<28}{''.join(_cell(c) for c in asked)}", flush=True)
    print(f"  worst p99 over HTTP {worst:.1f} ms (wanted: at most {WANTED_MS:g})")


def _path(narrowed: dict[str, Any], cursor: str | None) -> str:
    query = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in narrowed.items() if k != "labels"}
    query |= {"label": narrowed.get("labels", [])} | ({"cursor": encode_cursor(cursor)} if cursor else {})
    return f"/v1/builds?{urlencode(query, doseq=True)}"


async def _ask(wire: Wire, path: str) -> None:
    status, answer = await wire.get(path, BEARER)
    assert status == 200, answer


def _statement(project: Project, narrowed: dict[str, Any], cursor: str | None) -> tuple[str, list[Any]]:
    """Return what the route asks the database, as asyncpg takes it."""
    wish = NONE | narrowed | {"cursor": cursor and encode_cursor(cursor)}
    statement = lists.builds(project, limit=PAGE + 1, **wish)
    made = statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True})
    values = [made.params[name] for name in made.positiontup or ()]
    return str(made), [as_json(v) if isinstance(v, dict) else v for v in values]


async def _timed(acts: list[Callable[[], Awaitable[object]]]) -> tuple[float, float]:
    """Do one after the other, the first few to warm up; returns the milliseconds of p50 and p99."""
    took = []
    for act in acts:
        begun = time.perf_counter()
        await act()
        took.append((time.perf_counter() - begun) * 1000)
    cuts = statistics.quantiles(took[WARM:], n=100)
    return cuts[49], cuts[98]


def _cell(figures: tuple[float, float]) -> str:
    return f"{figures[0]:>8.1f} /{figures[1]:>6.1f}"
