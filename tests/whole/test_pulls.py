"""A service that slept for weeks is pulled again where it wakes, long after all that was given for minutes has ended."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from app.images.client import Registry
from app.images.errors import RegistryDenied
from app.imitations.koyeb import KoyebImitation
from app.imitations.railway import RailwayImitation
from app.models import PullCredential
from app.settings import LocalSettings
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.plane import Json, Plane, ask, ground, plane, platforms
from tests.support.waiting import eventually

#: Those that pull by themselves; into Fly's registry we copy.
PULL = ("northflank", "koyeb", "railway")
WEEKS = 8 * 7 * 86400


async def test_a_sleeper_is_pulled_again_weeks_later_and_never_after_its_deletion(
    toolbox: Toolbox, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = toolbox.home(tmp_path / "home", seeded=True)
    at = ground(database_url, home, toolbox, local=LocalSettings())
    async with platforms(at, tmp_path, *PULL) as stand_ins, plane(at, stand_ins) as here:
        on_local = {"platform": "local"}
        builds = await asyncio.gather(*(here.build(tiny(), name, f"on-{name}", builder=on_local) for name in PULL))
        await asyncio.gather(*(_asleep(here, name) for name in PULL))
        authority = here.context.images._authority  # its clock is an injected one
        monkeypatch.setattr(authority, "clock", lambda: time.time() + WEEKS)
        for one in stand_ins.values():
            await asyncio.to_thread(shutil.rmtree, one.folder / "images")
        await asyncio.gather(*(_wakes(build) for build in builds))
        async with here.context.sessions() as session:
            credentials = (await session.execute(select(PullCredential))).scalars().all()
        assert {c.platform for c in credentials} == set(PULL)
        digest = builds[0]["artifact"]["digest"]
        assert [await _pulls(here, c, digest) for c in credentials] == [True] * 3
        for name in PULL:
            await here.call("DELETE", f"/v1/services/on-{name}")
        assert [await _pulls(here, c, digest) for c in credentials] == [False] * 3
        await here.deleted()


async def _asleep(here: Plane, name: str) -> None:
    one = here.stand_ins[name]
    if isinstance(one, KoyebImitation | RailwayImitation):
        assert len(await one.idle_pass()) == 1
    else:
        await here.call("POST", f"/v1/services/on-{name}/sleep")
    await eventually(lambda: one.programs == [], 20)


async def _wakes(build: Json) -> None:
    assert (await ask(build["url"]))["digest"] == build["artifact"]["digest"]


async def _pulls(here: Plane, credential: PullCredential, digest: str) -> bool:
    password = here.context.keyring.pull_password(credential.id, credential.key_id)
    async with Registry(here.context.settings.api_url, username=credential.id, password=password) as registry:
        try:
            await registry.get_manifest(credential.repository, digest)
        except RegistryDenied:
            return False
    return True
