"""Whole builds while a platform misbehaves: each ends as it should, and nothing is left running."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from app.imitations.base import LOST_CALLBACK
from app.imitations.fly import FlyImitation
from app.imitations.koyeb import KoyebImitation
from app.imitations.northflank import NorthflankImitation
from app.imitations.railway import RailwayImitation
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.plane import CLOUDS, Json, Plane, ask, ground, plane, platforms
from tests.support.waiting import eventually

#: What really starts a builder, and how its answer gets lost.
LAUNCH = {
    "fly": ("create machine", "timeout after success"),
    "koyeb": ("create service", "cut after success"),
    "northflank": ("start run", "timeout after success"),
    "railway": ("serviceInstanceDeployV2", "timeout after success"),
}


@pytest.mark.parametrize("names", [("fly", "koyeb"), ("northflank", "railway")], ids="-".join)
async def test_each_trouble_ends_rightly(
    toolbox: Toolbox, database_url: str, tmp_path: Path, names: tuple[str, ...]
) -> None:
    at = ground(database_url, tmp_path / "home", toolbox)
    async with platforms(at, tmp_path, *names) as stand_ins, plane(at, stand_ins) as here:
        await asyncio.gather(*(_all(here, name) for name in names))
        await here.deleted(*(f"on-{name}" for name in names))


async def _all(here: Plane, name: str) -> None:
    await _a_launch_whose_answer_is_lost(here, name)
    await _a_lost_callback(here, name)
    await _a_bad_rollout(here, name)
    await _a_slow_start(here, name)


async def _a_launch_whose_answer_is_lost(here: Plane, name: str) -> None:
    operation, fault = LAUNCH[name]
    one = here.stand_ins[name]
    one.misbehave(fault, operation)
    build = await here.build(tiny(), name, f"on-{name}")
    assert len(build["runs"]) == 1
    assert (await ask(build["url"]))["version"] == "1"
    # One was asked for before, and the service's own where that is the same operation: the lost one was found, not made again.
    assert one.count(operation) == (1 if name == "northflank" else 2)


async def _a_lost_callback(here: Plane, name: str) -> None:
    here.stand_ins[name].misbehave(LOST_CALLBACK)
    build = await here.send(tiny("again"), name)
    await eventually(lambda: _said(here, build, "pushed sha256:"), 30)
    if name == "koyeb":  # it holds there, and runs as far as the platform can tell
        await eventually(lambda: _reported(here, build), 30)
    await _ago(here, build, "heartbeat_at")
    done = await here.ended(build)
    assert [run["status"] for run in done["runs"]] == ["lost", "succeeded"]
    await eventually(lambda: len(here.stand_ins[name].programs) == 1, 20)


async def _said(here: Plane, build: str, words: str) -> bool:
    return words in await here.log(build)


async def _reported(here: Plane, build: str) -> bool:
    async with here.context.sessions() as session:
        stage = await session.execute(text("select stage from run where build_id = :id"), {"id": build})
        return bool(stage.scalar_one() == "reported")


async def _ago(here: Plane, build: str, column: str) -> None:
    """Let a time of the build's run be some minutes ago, as if they had passed."""
    statement = f"update run set {column} = now() - interval '5 minutes', next_check_at = null where build_id = :id"
    async with here.context.sessions.begin() as session:
        await session.execute(text(statement), {"id": build})


async def _a_bad_rollout(here: Plane, name: str) -> None:
    before = await here.service(f"on-{name}")
    release = await _change(here, name, MODE="crash")
    failed = await here.failed(f"on-{name}", release["id"])
    assert failed["reason"] == "crashed_at_start", failed
    assert (await here.service(f"on-{name}"))["live_release"] == before["live_release"]
    assert (await ask(before["url"]))["version"] == "1"
    await eventually(lambda: len(here.stand_ins[name].programs) == 1, 20)
    assert (await ask(before["url"]))["version"] == "1"


async def _a_slow_start(here: Plane, name: str) -> None:
    one = here.stand_ins[name]
    assert isinstance(one, FlyImitation | KoyebImitation | NorthflankImitation | RailwayImitation)
    one.host.released.clear()
    seen = len(one.requests)
    release = await _change(here, name, MODE=None, WORD="slow")
    await eventually(lambda: len(one.requests) > seen + 10, 30)  # it was deployed, and looked at more than once
    service = await here.service(f"on-{name}")
    assert service["live_release"]["id"] != release["id"]
    assert (await ask(service["url"]))["word"] == ""
    one.host.released.set()
    service = await here.live(f"on-{name}", release["id"])
    assert (await ask(service["url"]))["word"] == "slow"


async def _change(here: Plane, name: str, **env: str | None) -> Json:
    return await here.call("PATCH", f"/v1/services/on-{name}", json={"env": env, "strict": False})


assert set(LAUNCH) == set(CLOUDS)
