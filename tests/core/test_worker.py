"""The worker as a whole: what it takes off the queue when nobody runs its jobs by hand."""

import asyncio
from contextlib import suppress
from pathlib import Path

from app import jobs
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
