"""The builder's side: who may say what, and that everything said twice counts once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.pool import QueuePool

from app.models import Build
from tests.support.builder import Builder
from tests.support.world import World

SUCCEEDED = "succeeded"


async def ready(here: World, service: str | None = None) -> tuple[Build, Builder]:
    """Return a build whose builder was launched and has said nothing yet."""
    build = await here.submit(service)
    await here.jobs()
    return build, await here.builder(build)


async def claimed(here: World, service: str | None = None) -> tuple[Build, Builder]:
    build, builder = await ready(here, service)
    await builder.claim()
    return build, builder


async def lines(here: World, builder: Builder) -> list[str]:
    rows = await here.sql("select lines from run_log where run_id = :id order by number", id=builder.run_id)
    return [line["m"] for row in rows for line in row.lines]


async def test_the_first_instance_wins_and_may_ask_again(here: World) -> None:
    _, builder = await ready(here)
    answers = await asyncio.gather(*(builder.other(instance=f"m{n}").post("claim") for n in range(6)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 5
    winner = builder.other(instance=f"m{[a.status_code for a in answers].index(200)}")
    first = next(a for a in answers if a.status_code == 200).json()
    assert await winner.claim() == first


async def test_a_foreign_instance_may_do_nothing(here: World) -> None:
    _, builder = await claimed(here)
    stranger = builder.other(instance="stranger")
    for verb, body in (("heartbeat", {}), ("push-grant", {}), ("logs", {"seq": 0, "lines": []})):
        answer = await stranger.post(verb, **body)
        assert (answer.status_code, answer.json()["reason"]) == (409, "run_not_yours"), verb
    assert (await stranger.complete({"status": "failed", "reason": "timeout"})).status_code == 409


async def test_nothing_before_the_claim(here: World) -> None:
    _, builder = await ready(here)
    assert (await builder.post("push-grant")).status_code == 409
    assert (await builder.post("heartbeat")).status_code == 409
    assert (await builder.complete({"status": "failed", "reason": "timeout"})).status_code == 409


async def test_after_the_end_only_the_tail_of_the_log_is_taken(here: World) -> None:
    _, builder = await claimed(here)
    await builder.log("one")
    await builder.fail("compile_error")
    for verb in ("claim", "heartbeat", "push-grant"):
        answer = await builder.post(verb)
        assert (answer.status_code, answer.json()["reason"]) == (410, "run_over"), verb
    assert (await builder.log("two", seq=1)).status_code == 204
    assert (await builder.other(instance="x").log("three", seq=2)).status_code == 409
    await here.sql("update run set finished_at = now() - interval '11 minutes'")
    assert (await builder.log("three", seq=2)).status_code == 410
    assert await lines(here, builder) == ["one", "two"]


async def test_log_lines_sent_again_are_dropped(here: World) -> None:
    _, builder = await claimed(here)
    await builder.log("a", "b")
    await builder.log("b", "c", seq=1)
    await builder.log("a", "b", "c")
    await builder.log("f", seq=5)
    assert await lines(here, builder) == ["a", "b", "c", "f"]
    assert [r.number for r in await here.sql("select number from run_log order by number")] == [0, 2, 5]


async def test_batches_sent_at_once_are_kept_once(here: World) -> None:
    _, builder = await claimed(here)
    answers = await asyncio.gather(*(builder.log("a", "b", "c") for _ in range(5)))
    assert {a.status_code for a in answers} == {204}
    assert await lines(here, builder) == ["a", "b", "c"]


async def test_a_slow_batch_holds_no_connection(here: World) -> None:
    _, builder = await claimed(here)
    pool, slow = here.context.engine.pool, asyncio.Event()
    assert isinstance(pool, QueuePool)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"instance": "machine-1", "seq": 0, '
        slow.set()
        await going.wait()
        yield b'"lines": [{"t": 1, "s": "stdout", "m": "late"}]}'

    going, url = asyncio.Event(), f"/v1/runs/{builder.run_id}/logs"
    sending = asyncio.create_task(
        here.http.post(url, content=body(), headers={"Authorization": f"Bearer {builder.token}"})
    )
    await slow.wait()
    held = pool.checkedout()
    going.set()
    assert ((await sending).status_code, held) == (204, 0)
    assert await lines(here, builder) == ["late"]


async def test_a_long_line_and_strange_ones_are_kept_readable(here: World) -> None:
    _, builder = await claimed(here)
    limit = here.context.settings.max_log_line_bytes
    await builder.log("ä" * limit, "a\x00b", "ok")
    long, strange, ok = await lines(here, builder)
    assert len(long.encode()) <= limit
    assert long.endswith(" …[cut]")
    assert (strange, ok) == ("a�b", "ok")


async def test_a_log_ends_at_its_limit_with_one_mark(here: World) -> None:
    _, builder = await claimed(here)
    await here.sql("update run set log_bytes = :n", n=here.context.settings.max_log_bytes - 5)
    await builder.log("1234", "5678", "9")
    assert (await builder.log("more", seq=3)).status_code == 204
    kept = await lines(here, builder)
    assert kept[0] == "1234"
    assert kept[1:] == [f"[the log is cut here: over {here.context.settings.max_log_bytes} bytes]"]


async def test_every_word_of_a_builder_is_a_sign_of_life(here: World) -> None:
    for verb, body in (("heartbeat", {"stage": "compile"}), ("logs", {"seq": 0, "lines": []})):
        _, builder = await claimed(here)
        await here.sql("update run set heartbeat_at = now() - interval '1 hour'")
        await builder.post(verb, **body)
        row = await here.sql(
            "select now() - heartbeat_at < interval '1 min' as ok from run where id = :i", i=builder.run_id
        )
        assert row[0].ok, verb


@pytest.mark.parametrize(
    ("token", "status"),
    [("nonsense", 401), ("slr.run_0000000000000000000000000.abc", 401), ("slr.{id}.forged", 401), ("other", 403)],
)
async def test_tokens(here: World, token: str, status: int) -> None:
    _, builder = await ready(here)
    _, other = await ready(here)
    bad = {"other": other.token}.get(token, token.format(id=builder.run_id))
    forged = builder.other(token=bad)
    for verb in ("claim", "heartbeat", "push-grant", "logs"):
        assert (await forged.post(verb, seq=0, lines=[])).status_code == status, verb
    assert (await forged.complete({"status": "failed"})).status_code == status
    headers = {"Authorization": f"Bearer {bad}"}
    assert (await here.http.get(f"/v1/runs/{builder.run_id}/source", headers=headers)).status_code == status


async def test_an_api_key_opens_no_run_and_a_run_token_no_api(here: World) -> None:
    _, builder = await ready(here)
    assert (await builder.other(token=here.key).post("claim")).status_code == 401
    answer = await here.http.get("/v1/builds", headers={"Authorization": f"Bearer {builder.token}"})
    assert answer.status_code == 401


async def test_the_source_is_what_was_sent(here: World) -> None:
    _, builder = await claimed(here)
    stored = await here.sql("select string_agg(data, ''::bytea order by number) as whole from source_chunk")
    assert await builder.source() == bytes(stored[0].whole)
