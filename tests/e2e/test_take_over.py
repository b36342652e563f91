"""A new owner does not wait for time-outs: what a dead one was at is due at once, and only on platforms of its own."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pgqueuer.db import AsyncpgDriver
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.types import QueueEntrypoint, QueueManagerId

from app.models import Build
from app.queue import queries
from app.services.leave import CALL_SECONDS
from app.takeover import owned, take_over
from tests.support.platform import NAME, TRAITS
from tests.support.world import World, world

BOUND = replace(TRAITS, host_bound=True)


async def picked_by_another(it: World) -> int:
    """Let a worker take every job that is due, as one that dies right afterwards; returns how many."""
    names = await it.sql("select distinct entrypoint from pgqueuer.pgqueuer")
    batch = await queries(AsyncpgDriver(it._connection)).dequeue(
        batch_size=50,
        entrypoints={QueueEntrypoint(r.entrypoint): EntrypointExecutionParameter(concurrency_limit=0) for r in names},
        queue_manager_id=QueueManagerId(uuid4()),
        global_concurrency_limit=None,
        heartbeat_timeout=timedelta(minutes=1),
    )
    return len(batch)


async def test_the_jobs_of_a_dead_worker_are_taken_at_once(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        build = await it.submit()
        assert await picked_by_another(it) == 1
        assert await it.jobs() == 0  # its heartbeat is young
        await take_over(it.context)
        assert await it.jobs() == 1
        assert (await it.one(Build, id=build.id)).status == "building"


LEFT = [
    ("build", "dispatching"),
    ("release", "pending"),
    ("release", "deploying"),
    ("service", "waking"),
    ("service", "sleeping"),
    ("service", "deleting"),
]
AT_REST = [("build", "queued"), ("release", "superseded"), ("service", "asleep")]


async def due_after(it: World, table: str, status: str) -> bool:
    """Let a dead process have left a row like this, with its time-out ahead; tell whether a take-over makes it due."""
    await it.deployed("one")
    later = "next_check_at = now() + interval '1 hour'"
    await it.sql(f"update {table} set status = :status, {later}", status=status)
    await take_over(it.context)
    return bool((await it.sql(f"select next_check_at <= now() as due from {table}"))[0].due)


@pytest.mark.parametrize(("table", "status"), LEFT)
async def test_a_step_that_was_cut_short_is_due_at_once(
    table: str, status: str, database_url: str, tmp_path: Path
) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        assert await due_after(it, table, status)


async def test_a_removal_that_was_cut_short_is_tried_again_at_once(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        await it.deployed("one")
        await it.sql("update release set leaving_at = now(), next_check_at = now() + interval '1 hour'")
        await take_over(it.context)
        (left,) = await it.sql("select next_check_at <= now() as due, now() - leaving_at as ago from release")
        assert left.due
        assert left.ago > timedelta(seconds=CALL_SECONDS)  # nobody waits for the dead one's try


@pytest.mark.parametrize(("table", "status"), AT_REST)
async def test_what_waits_for_its_time_goes_on_waiting(
    table: str, status: str, database_url: str, tmp_path: Path
) -> None:
    async with world(database_url, tmp_path, traits=BOUND) as it:
        assert not await due_after(it, table, status)


async def test_what_others_may_be_at_is_left_alone(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path) as it:
        assert owned(it.context) == []
        assert not await due_after(it, "service", "waking")
        await it.submit()
        assert await picked_by_another(it) == 1
        await take_over(it.context)
        assert await it.jobs() == 0


async def test_an_embedded_database_has_no_other_user(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path) as it:
        alone = replace(it.context, settings=it.context.settings.model_copy(update={"database_url": None}))
        assert owned(alone) == [NAME]
