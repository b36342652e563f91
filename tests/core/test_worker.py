"""The worker as a whole: what it takes off the queue when nobody runs its jobs by hand."""

import asyncio
from contextlib import suppress
from pathlib import Path

from structlog.testing import capture_logs

from app import jobs
from app.serving import after_its_end
from tests.support.waiting import eventually
from tests.support.world import world


async def test_a_worker_of_one_works(database_url: str, tmp_path: Path) -> None:
    """PgQueuer refuses to run when it may hold less than two batches of jobs."""
    async with world(database_url, tmp_path / "home", worker_concurrency=1) as here:
        await here.submit("echo")
        working = asyncio.create_task(jobs.work(here.context, database_url))
        try:
            await eventually(lambda: here.yard.machines or working.done())
            assert not working.done(), working.exception()
            assert len(here.yard.machines) == 1
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working


def test_a_worker_that_keeps_leaving_is_started_ever_later() -> None:
    failures, pauses = 0, []
    for lived in (1.0, 1.0, 1.0, 3600.0, 1.0):
        failures, pause = after_its_end(failures, lived)
        pauses.append(pause)
    assert pauses == [0.5, 1.0, 2.0, 0.5, 1.0]
    assert after_its_end(100, 1.0) == (101, 10.0)


async def test_a_registry_s_disk_that_fails_ends_no_worker(database_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "home/registry/broken"
    (broken / "blobs").mkdir(parents=True)
    (broken / "index.json").mkdir()
    async with world(database_url, tmp_path / "home") as here:
        with capture_logs() as lines:
            working = asyncio.create_task(jobs.work(here.context, database_url))
            try:
                await eventually(lambda: working.done() or any("pass failed" in line["event"] for line in lines))
                await here.submit()
                await eventually(lambda: here.yard.machines or working.done())
                assert not working.done(), working.exception()
            finally:
                working.cancel()
                with suppress(asyncio.CancelledError):
                    await working
