"""Built on one platform, run on another: every pair of the five; and what a build and a promote ask of an account."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from app.settings import LocalSettings
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.plane import CLOUDS, Json, Plane, ask, ground, plane, platforms

ALL = ("local", *CLOUDS)
#: Of a healthy build, from its launch until its builder is removed.
OF_A_BUILD = {"fly": 4, "koyeb": 3, "northflank": 6, "railway": 11}
#: Of a release of a service that is there, from its deploy until the one before sleeps and the oldest one is gone.
OF_A_PROMOTE = {"fly": 11, "koyeb": 6, "northflank": 6, "railway": 7}
#: What looks ask for. How many there are is a matter of time, so they are not counted.
LOOKS = {
    "fly": {"get machine"},
    "koyeb": {"get deployment", "get service", "list instances"},
    "northflank": {"get service", "get ports", "list containers"},
    "railway": {"serviceInstance"},
}


async def test_what_any_platform_built_runs_on_every_platform(
    toolbox: Toolbox, database_url: str, tmp_path: Path
) -> None:
    home = toolbox.home(tmp_path / "home", seeded=True)
    at = ground(database_url, home, toolbox, local=LocalSettings())
    async with platforms(at, tmp_path) as stand_ins, plane(at, stand_ins) as here:
        builds = dict(
            zip(ALL, await asyncio.gather(*(here.build(tiny(f"of {n}"), n, f"on-{n}") for n in ALL)), strict=True)
        )
        await asyncio.gather(*(_run_all(here, name, builds) for name in ALL))
        await here.idle()
        async with _at_most(here, OF_A_BUILD, but=LOOKS):
            counted = await asyncio.gather(*(here.build(tiny("counted"), name) for name in CLOUDS))
        async with _at_most(here, OF_A_PROMOTE, but=LOOKS):
            await asyncio.gather(*(_run(here, *on) for on in zip(CLOUDS, counted, strict=True)))
        await here.deleted(*(f"on-{name}" for name in ALL))


@contextlib.asynccontextmanager
async def _at_most(
    here: Plane, most: Mapping[str, int], *, but: Mapping[str, set[str]] | None = None
) -> AsyncIterator[None]:
    """Count what the block, and the jobs that follow from it, ask each stand-in for."""
    before = {name: len(here.stand_ins[name].requests) for name in most}
    yield
    await here.idle()
    asked = {name: Counter(r.operation for r in here.stand_ins[name].requests[at:]) for name, at in before.items()}
    for name, seen in asked.items():
        for look in (but or {}).get(name, ()):
            del seen[look]
    assert {name: seen for name, seen in asked.items() if seen.total() > most[name]} == {}


async def _run(here: Plane, name: str, build: Json) -> Json:
    """Promote what a build made to the service on a platform."""
    body = {"artifact_id": build["artifact"]["id"]}
    release = await here.call("POST", f"/v1/services/on-{name}/releases", json=body)
    return await here.live(f"on-{name}", release["id"])


async def _run_all(here: Plane, name: str, builds: dict[str, Json]) -> None:
    url = builds[name]["url"]
    assert (await ask(url))["version"] == f"of {name}"
    for other, build in builds.items():
        if other == name:
            continue
        service = await _run(here, name, build)
        said = await ask(service["url"])
        assert (said["version"], said["digest"]) == (f"of {other}", build["artifact"]["digest"]), name
