"""Two installations on one account: neither one's sweep touches what is the other's."""

import sys
from pathlib import Path

from sqlalchemy import text

from app import db, jobs
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.databases import SharedServer
from tests.support.plane import CLOUDS, Plane, ground, plane, platforms
from tests.support.waiting import eventually

STAYS = (sys.executable, "-c", "import time; time.sleep(600)")


async def test_a_sweep_removes_only_what_is_of_its_own_installation(
    toolbox: Toolbox, postgres: SharedServer, tmp_path: Path
) -> None:
    # The other one has a database of its own making: a copy of the first would be the same installation.
    with postgres.database() as one_url, postgres.database(migrated=False) as other_url:
        await db.migrate(other_url)
        at, beside = (ground(u, tmp_path / u[-6:], toolbox, sweep_grace_seconds=0.0) for u in (one_url, other_url))
        async with (
            platforms(at, tmp_path, *CLOUDS, builder=STAYS) as stand_ins,
            plane(at, stand_ins) as one,
            plane(beside, stand_ins) as other,
        ):
            for here in (one, other):
                for name in CLOUDS:
                    await here.send(tiny(), name)
            await eventually(lambda: all(len(s.programs) == 2 for s in stand_ins.values()), 30)
            await eventually(lambda: _launched(one), 30)
            # All of one's builders are known to have ended, and none was removed.
            await _sql(
                one, "update run set status = 'lost', cleaned_at = now(), finished_at = now() - interval '1 hour'"
            )
            await jobs.sweep(other.context)
            assert {name: len(s.programs) for name, s in stand_ins.items()} == dict.fromkeys(CLOUDS, 2)
            await jobs.sweep(one.context)
            await eventually(lambda: all(len(s.programs) == 1 for s in stand_ins.values()), 30)
            await jobs.sweep(other.context)
            for name, stand_in in stand_ins.items():
                mine = other.context.catalog.held[name].builders
                assert mine is not None
                assert len((await mine.list_ours(other.context.installation)).items) == 1, name
                assert len(stand_in.programs) == 1, name


async def _launched(here: Plane) -> bool:
    async with here.context.sessions() as session:
        waiting = await session.execute(text("select count(*) from run where handle is null"))
        return bool(waiting.scalar_one() == 0)


async def _sql(here: Plane, statement: str) -> None:
    async with here.context.sessions.begin() as session:
        await session.execute(text(statement))
