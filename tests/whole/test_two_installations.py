"""Two installations on one account: neither one's sweep touches what is the other's."""

import contextlib
import sys
from pathlib import Path

from sqlalchemy import text

from app import db, jobs, keys
from app.ids import new_id, remote_name
from app.images.errors import RegistryError
from app.lifecycle import ServiceStatus
from app.models import Service
from app.platforms.base import ImageRef, PlatformError, ServiceSpec, Size
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox
from tests.support.databases import SharedServer
from tests.support.plane import CLOUDS, Plane, ground, plane, platforms
from tests.support.waiting import eventually

#: Whose listing has services; Northflank's has releases, which are told apart by the same names.
LISTED = ("fly", "koyeb", "railway")
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
            await _services(one, other)


async def _services(one: Plane, other: Plane) -> None:
    """Do the same with what half a deploy left of services: one knows that its are deleted, the other's are not."""
    for here in (one, other):
        for name in LISTED:
            await _half_deployed(here, name)
    await jobs.sweep(other.context)
    await jobs.sweep(one.context)
    assert [await _listed(here, name) for here in (one, other) for name in LISTED] == [1] * 6
    for here, left in ((one, [0, 0, 0, 1, 1, 1]), (other, [0] * 6)):
        await _sql(here, "update service set status = 'deleted', deleted_at = now()")
        await jobs.sweep(here.context)
        assert [await _listed(owner, name) for owner in (one, other) for name in LISTED] == left


async def _half_deployed(here: Plane, name: str) -> None:
    """Deploy an image that is nowhere."""
    async with here.context.sessions.begin() as session:
        project = await keys.project_named(session, keys.DEFAULT_PROJECT)
        of = f"of-{name}"
        service = Service(
            id=new_id("svc"), project_id=project.id, name=of, host=of, platform=name, status=ServiceStatus.PENDING
        )
        session.add(service)
    services, installation = here.context.catalog.held[name].services, here.context.installation
    assert services is not None
    image = ImageRef(
        registry=here.context.settings.api_url,
        repository="no/image",
        digest=f"sha256:{0:064}",
        username="x",
        password="x",
    )
    spec = ServiceSpec(
        service=remote_name(installation, service.id), release=remote_name(installation, new_id("rel")), image=image,
        port=8080, health_path="/", env={}, secrets={}, size=Size(cpus=1, memory_mb=256), scale_min=0, idle_seconds=300,
        regions=(), metadata={},
    )  # fmt: skip
    with contextlib.suppress(PlatformError, RegistryError):
        await services.deploy(spec)


async def _listed(here: Plane, name: str) -> int:
    services = here.context.catalog.held[name].services
    assert services is not None
    return len((await services.list_ours(here.context.installation)).items)


async def _launched(here: Plane) -> bool:
    async with here.context.sessions() as session:
        waiting = await session.execute(text("select count(*) from run where handle is null"))
        return bool(waiting.scalar_one() == 0)


async def _sql(here: Plane, statement: str) -> None:
    async with here.context.sessions.begin() as session:
        await session.execute(text(statement))
