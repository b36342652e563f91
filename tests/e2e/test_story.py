"""The life of a service on the whole embedded default, seen from outside."""

import asyncio
import concurrent.futures
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from app.embedded.postgres import EmbeddedPostgres
from tests.e2e.modules import Door, door
from tests.e2e.place import KEY, Place, eventually, place
from tests.e2e.programs import ECHO, program, tiny
from tests.support.agents import Toolbox

SECRET = "planted-4711-never-in-clear"
CRASHING = program('package main\n\nimport "syscall"\n\nfunc main() { syscall.Exit(3) }\n')


@pytest.fixture(scope="module")
def modules() -> Iterator[Door]:
    with door() as it:
        yield it


@pytest.fixture(scope="module")
def here(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory, modules: Door) -> Iterator[Place]:
    home = toolbox.home(tmp_path_factory.mktemp("story") / "home", seeded=True)
    settings = {"SLIPWAY_DRAIN_SECONDS": "0.2", "SLIPWAY_SWEEP_SECONDS": "1", "GOPROXY": modules.url}
    with place(home, **settings) as it:
        it.start()
        yield it
        it.stop()


def live(it: Place, name: str, number: int) -> bool:
    return bool(it.service(name)["live_release"]["number"] == number)


def test_the_life_of_a_service(here: Place) -> None:
    first = here.build(ECHO, "echo", scale={"min": 0, "idle_seconds": 1})
    answer = here.ask("echo")
    assert answer["digest"] == first["artifact"]["digest"]
    assert first["url"] == f"http://{here.host('echo')}"

    # It sleeps by itself: the process is gone. 50 requests at once make one start.
    here.until("echo", "asleep")
    assert here.instances() == set()
    starts = here.service("echo")["starts"]
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: here.ask("echo"), range(50)))
    assert {a["digest"] for a in answers} == {first["artifact"]["digest"]}
    assert len({a["instance"] for a in answers}) == 1
    assert answers[0]["instance"] != answer["instance"]
    assert here.service("echo")["starts"] == starts + 1

    # The same source once more is the same image; another version takes over without a gap.
    api = here.api("PATCH", "/v1/services/echo", json={"scale": {"min": 0, "idle_seconds": 300}})
    eventually(lambda: live(here, "echo", api["number"]))
    again = here.build(ECHO)
    assert again["artifact"]["digest"] == first["artifact"]["digest"]
    second = here.send(ECHO | {"main.go": ECHO["main.go"].replace("maxCount = 10_000", "maxCount = 20_000")}, "echo")
    seen = list[str]()

    def switched() -> bool:
        seen.append(here.ask("echo")["digest"])
        return bool(seen[-1] != first["artifact"]["digest"])

    eventually(switched, 60)
    build = here.ended(second)
    assert set(seen) == {first["artifact"]["digest"], build["artifact"]["digest"]}
    here.settled("echo")

    # Back again, a changed environment, and a version that does not start.
    rollback = here.api("POST", "/v1/services/echo/rollback")
    eventually(lambda: live(here, "echo", rollback["number"]))
    assert here.ask("echo")["digest"] == first["artifact"]["digest"]
    failed = here.ended(here.send(CRASHING, "echo"), "failed")
    assert failed["reason"] == "crashed_at_start"
    assert here.ask("echo")["digest"] == first["artifact"]["digest"]
    assert live(here, "echo", rollback["number"])
    here.settled("echo")

    here.api("DELETE", "/v1/services/echo")
    nothing_of_it(here)


def nothing_of_it(here: Place) -> None:
    """Wait until no process, release or image is there any more."""
    local = here.home / "local"

    def gone() -> bool:
        left = [*(local / "releases").glob("*.json"), *(local / "images").glob("[!.]*"), *here.instances()]
        assert left == []
        return True

    eventually(gone)


def clear_in(folder: Path, text: str) -> list[Path]:
    """Return the files below a folder that hold a text."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return [path for path in files if path.is_file() and text.encode() in path.read_bytes()]


async def rows_with(home: Path, *texts: str) -> list[str]:
    """Return the tables of a stopped server's database in which a row holds one of the texts, or there are secrets."""
    async with EmbeddedPostgres(home) as server:
        assert server.url is not None
        async with asyncpg.create_pool(server.url, min_size=1, max_size=1) as pool:
            tables = [r[0] for r in await pool.fetch("select oid::regclass::text from pg_class where relkind = 'r'")]
            found = []
            for table in tables:
                for (row,) in await pool.fetch(f"select t::text from {table} t"):
                    found += [f"{table}: {row}" for text in texts if text in row]
            assert "secret_version" in tables
            return found + [f"{n} secrets" for n in [await pool.fetchval("select count(*) from secret_version")] if n]


def test_secrets_are_nowhere_in_clear(here: Place) -> None:
    build = here.build(tiny(), "keeper", env={"WORD": "one"}, secrets={"SECRET": SECRET})
    said = here.ask("keeper")
    assert (said["word"], said["secret"]) == ("one", str(len(SECRET)))

    # A changed environment is a new release, with the same image and the same secrets.
    changed = here.api("PATCH", "/v1/services/keeper", json={"env": {"WORD": "two"}})
    eventually(lambda: live(here, "keeper", changed["number"]))
    said = here.ask("keeper")
    assert (said["word"], said["secret"], said["digest"]) == ("two", str(len(SECRET)), build["artifact"]["digest"])

    here.settled("keeper")
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert SECRET not in listed
    answers = [
        here.http.get(f"http://127.0.0.1:{here.port}{path}", headers={"Authorization": f"Bearer {KEY}"}).text
        for path in (
            f"/v1/builds/{build['id']}",
            f"/v1/builds/{build['id']}/events",
            f"/v1/builds/{build['id']}/logs",
            "/v1/services/keeper",
            "/v1/services/keeper/releases",
            "/v1/services/keeper/logs",
        )
    ]
    assert [a for a in answers if SECRET in a] == []
    assert SECRET not in here.output
    assert clear_in(here.home, SECRET) == []

    here.api("DELETE", "/v1/services/keeper")
    nothing_of_it(here)
    here.stop()
    assert clear_in(here.home, SECRET) == []
    assert asyncio.run(rows_with(here.home, SECRET, SECRET.encode().hex())) == []
    here.start()


def test_the_newer_build_wins_although_the_older_ends_later(here: Place, modules: Door) -> None:
    older = here.send(modules.needing(tiny("old"), "example.test/slow"), "raced")
    eventually(lambda: here.api("GET", f"/v1/builds/{older}")["status"] == "building")
    newer = here.build(tiny("new"), "raced")
    modules.opened.set()
    late = here.ended(older, "failed")
    assert (late["reason"], late["artifact"]["digest"] != newer["artifact"]["digest"]) == ("superseded", True)
    assert here.ask("raced")["version"] == "new"
    assert here.service("raced")["live_release"]["build_id"] == newer["id"]

    # What was built is kept, and can be promoted by hand.
    release = here.api("POST", "/v1/services/raced/releases", json={"artifact_id": late["artifact"]["id"]})
    eventually(lambda: live(here, "raced", release["number"]))
    assert here.ask("raced")["version"] == "old"
    here.api("DELETE", "/v1/services/raced")
    nothing_of_it(here)


def test_a_service_that_shall_stay_up_does(here: Place) -> None:
    here.build(tiny("kept"), "kept", scale={"min": 1, "idle_seconds": 1})
    up = here.service("kept")
    here.build(tiny("drowsy"), "drowsy", scale={"min": 0, "idle_seconds": 1})
    here.until("drowsy", "asleep")
    assert here.service("kept")["status"] == "running"
    here.settled("kept", "drowsy")

    # It dies, and comes back without a request.
    here.kill_instance(up["instance_id"])
    eventually(lambda: here.service("kept")["instance_id"] not in {None, up["instance_id"]})
    here.until("kept", "running")
    here.settled("kept", "drowsy")
    for name in ("kept", "drowsy"):
        here.api("DELETE", f"/v1/services/{name}")
    nothing_of_it(here)
