"""Built on one platform, run on another: every pair of the five."""

import asyncio
from pathlib import Path

from app.settings import LocalSettings
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.plane import CLOUDS, Json, Plane, ask, ground, plane, platforms

ALL = ("local", *CLOUDS)
#: Of a healthy build, from its launch until its builder is removed.
MOST_REQUESTS = {"fly": 12, "koyeb": 12, "northflank": 8, "railway": 12}


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
        before = {name: len(one.requests) for name, one in stand_ins.items()}
        await asyncio.gather(*(here.build(tiny("counted"), name) for name in CLOUDS))
        await here.idle()
        asked = {name: [r.operation for r in one.requests[before[name] :]] for name, one in stand_ins.items()}
        assert {name: seen for name, seen in asked.items() if len(seen) > MOST_REQUESTS[name]} == {}
        await here.deleted(*(f"on-{name}" for name in ALL))


async def _run_all(here: Plane, name: str, builds: dict[str, Json]) -> None:
    url = builds[name]["url"]
    assert (await ask(url))["version"] == f"of {name}"
    for other, build in builds.items():
        if other == name:
            continue
        release = await here.call(
            "POST", f"/v1/services/on-{name}/releases", json={"artifact_id": build["artifact"]["id"]}
        )
        service = await here.live(f"on-{name}", release["id"])
        said = await ask(service["url"])
        assert (said["version"], said["digest"]) == (f"of {other}", build["artifact"]["digest"]), name
