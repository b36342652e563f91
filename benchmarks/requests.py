"""What a build and a promote cost a platform's account: requests, counted where they arrive, on each imitated platform.

The platforms' own code runs at its own pace. What sweeps ask for meanwhile is told apart: it does not grow with builds.
"""

import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from app.demo import examples
from app.demo.client import Client, Json, inline, until
from app.demo.server import running

PLATFORMS = ("fly", "koyeb", "northflank", "railway")
MOST = {"fly": 12, "koyeb": 12, "northflank": 8, "railway": 12}
"""Goals for a healthy build of any length."""
SECONDS = 120.0
QUIET_SECONDS = 3.0


async def run() -> None:
    os.environ["SLIPWAY_LOG_LEVEL"] = "warning"
    await asyncio.to_thread(_run)


def _run() -> None:
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        with running(Path(folder) / "log", home, PLATFORMS) as server, Client(server) as client:
            source = inline(examples() / "echo-agent")
            for name in PLATFORMS:
                _measure(client, server.stand_ins[name], name, source)


def _measure(client: Client, stand_in: str, name: str, source: Json) -> None:
    _built(client, {"source": source, "platform": name, "strict": False, "service": {"name": f"of-{name}"}})
    before = _quiet(client, stand_in)
    # Without the cache, since the artifact of the one before would do.
    alone = {"source": source, "platform": name, "strict": False, "build": {"cache": False}}
    build = _built(client, alone)
    built = _quiet(client, stand_in)
    body = {"artifact_id": build["artifact"]["id"]}
    release = client.call("POST", f"/v1/services/of-{name}/releases", json=body)
    until("the release to be live", SECONDS, lambda: _live(client, name, release["id"]))
    promoted = _quiet(client, stand_in)
    _print(name, "build", built - before, f", goal at most {MOST[name]}")
    _print(name, "promote", promoted - built, "")


def _built(client: Client, body: Json) -> Json:
    build = client.call("POST", "/v1/builds", json=body)

    def over() -> tuple[bool, str]:
        nonlocal build
        build = client.call("GET", f"/v1/builds/{build['id']}")
        return build["status"] == "succeeded", f"{build['status']}: {build['message']}"

    until("the build to succeed", SECONDS, over)
    return build


def _live(client: Client, name: str, release: str) -> tuple[bool, str]:
    live = client.call("GET", f"/v1/services/of-{name}")["live_release"]
    return live["id"] == release, f"release {live['number']} is live"


def _quiet(client: Client, stand_in: str) -> Counter[str]:
    """Wait until nothing has been asked for some seconds, and return all that was, by operation."""
    seen, since = Counter[str](), time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        now = Counter[str](client.look(stand_in)["requests"])
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.1)
    return seen


def _print(name: str, what: str, counted: Counter[str], goal: str) -> None:
    parts = ", ".join(f"{count} x {operation}" for operation, count in sorted(counted.items()))
    print(f"  {name:<10} {what:<8} {counted.total():>3} requests{goal}: {parts}", flush=True)
