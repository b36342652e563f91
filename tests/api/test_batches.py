"""Many builds in one request: each with its own outcome, all of them with one end."""

import asyncio
from typing import Any

import pytest

from app.builds.cancel import cancel
from app.models import Batch, Build, Event, SecretVersion, Service
from tests.support.problems import problem
from tests.support.world import FILES, Json, World

MISSING = {"kind": "upload", "digest": f"sha256:{'0' * 64}"}


def order(here: World, number: int, service: str | None = None, **config: Any) -> Json:
    """Return an order of a source that no other has."""
    return here.order(service, files=FILES | {"main.go": f"package main\n\n// {number}\nfunc main() {{}}\n"}, **config)


async def send(here: World, *orders: Json, **more: Any) -> Json:
    answer = await here.http.post("/v1/batches", json={"builds": list(orders), **more})
    assert answer.status_code == 202, answer.text
    batch = dict(answer.json())
    assert answer.headers["location"] == f"/v1/batches/{batch['id']}"
    return batch


async def look(here: World, batch: Json, **query: Any) -> Json:
    answer = await here.http.get(f"/v1/batches/{batch['id']}", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ends(here: World) -> list[Event]:
    return await here.rows(Event, kind="batch.ended")


async def test_each_has_its_own_outcome(here: World) -> None:
    deployed, _, _ = await here.deployed("elsewhere")
    await here.sql("update service set platform = 'moon'")
    upload = {"kind": "upload", "digest": deployed.source["digest"]}
    batch = await send(
        here,
        order(here, 1, "echo", secrets={"K": "s3cret"}),
        order(here, 2) | {"source": MISSING},
        {"source": {"kind": "files", "files": {}}, "nonsense": 1},
        "no object",  # type: ignore[arg-type]
        order(here, 3, "elsewhere"),
        order(here, 4) | {"platform": "moon"},
        order(here, 5) | {"source": upload, "labels": {"n": "5"}},
        order(here, 6, "echo"),
    )
    assert [i["index"] for i in batch["items"]] == list(range(8))
    assert [i["problem"] and i["problem"]["reason"] for i in batch["items"]] == [
        None, "invalid_request", "invalid_request", "invalid_request", "platform_differs", "invalid_request", None, None,
    ]  # fmt: skip
    assert {e["field"] for e in batch["items"][2]["problem"]["errors"]} == {"source.files", "nonsense"}
    assert (batch["size"], batch["accepted"], batch["rejected"], batch["builds"]) == (8, 3, 5, {"queued": 3})
    assert (await look(here, batch))["items"] == batch["items"]
    builds = [await here.one(Build, id=i["build_id"]) for i in batch["items"] if i["build_id"]]
    assert [(b.sequence, b.labels) for b in builds] == [(1, {}), (None, {"n": "5"}), (2, {})]
    service = await here.one(Service, name="echo")
    (secret,) = await here.rows(SecretVersion)
    assert (service.sequence, builds[0].secret_versions) == (2, {"K": secret.id})
    await here.jobs()
    assert {(await here.one(Build, id=b.id)).status for b in builds} == {"building"}, "each was dispatched"
    orders = await (await here.builder(builds[0])).claim()
    assert orders["source"]["digest"] == builds[0].source_digest
    assert await (await here.builder(builds[0])).source()


async def test_all_or_none(here: World) -> None:
    orders = [order(here, 1, "echo"), order(here, 2) | {"source": MISSING}, {}]
    answer = await here.http.post("/v1/batches", json={"builds": orders, "atomic": True})
    body = problem(answer, 422, "batch_refused")
    assert [e["field"] for e in body["errors"]] == ["builds.1.source.digest", "builds.2.source"]
    for table in ("build", "batch", "service", "source"):
        assert await here.sql(f"select 1 from {table}") == [], table
    assert (await send(here, order(here, 1, "echo"), atomic=True))["accepted"] == 1


@pytest.mark.parametrize(
    "body", [{}, {"builds": []}, {"builds": [{}] * 501}, {"builds": {}}, {"builds": [{}], "more": 1}]
)
async def test_a_batch_that_is_none(here: World, body: Json) -> None:
    problem(await here.http.post("/v1/batches", json=body), 422, "invalid_request")


async def test_a_batch_has_a_bound_of_its_own(here: World) -> None:
    limit = here.context.settings.max_batch_bytes
    ordinary = 6 * here.context.settings.max_inline_bytes + 2**20
    headers = {"Content-Type": "application/json"}
    between = b'{"builds": [{"x": "' + b"a" * ordinary + b'"}]}'
    problem(await here.http.post("/v1/batches", content=between, headers=headers), 422, "batch_refused")
    problem(await here.http.post("/v1/batches", content=b" " * (limit + 1), headers=headers), 413, "too_large")
    problem(await here.http.post("/v1/builds", content=between, headers=headers), 413, "too_large")


async def test_one_event_when_the_last_has_ended(here: World) -> None:
    batch = await send(here, *(order(here, n) for n in range(3)), {})
    await here.jobs()
    builds = [await here.one(Build, id=i["build_id"]) for i in batch["items"][:3]]
    builders = [await here.builder(b) for b in builds]
    await builders[0].finish()
    await builders[1].fail("compile_error")
    assert await ends(here) == []
    seen = await look(here, batch)
    assert (seen["builds"], seen["ended_at"]) == ({"succeeded": 1, "failed": 1, "building": 1}, None)
    await here.http.post(f"/v1/builds/{builds[2].id}/cancel")
    (event,) = await ends(here)
    assert event.data == {"batch_id": batch["id"], "size": 4, "accepted": 3}
    assert event.id > (await here.rows(Event, kind="build.canceled"))[-1].id
    seen = await look(here, batch)
    assert (seen["builds"], seen["ended_at"] is None) == ({"succeeded": 1, "failed": 1, "canceled": 1}, False)


async def test_ends_at_once_are_counted_one_by_one(here: World) -> None:
    batch = await send(here, *(order(here, n) for n in range(12)))
    cancels = (here.http.post(f"/v1/builds/{i['build_id']}/cancel") for i in batch["items"])
    assert {a.status_code for a in await asyncio.gather(*cancels)} == {200}
    assert len(await ends(here)) == 1
    assert (await here.one(Batch, id=batch["id"])).unfinished == 0


async def test_a_batch_of_nothing_is_refused(here: World) -> None:
    body = problem(await here.http.post("/v1/batches", json={"builds": [{}, {}]}), 422, "batch_refused")
    assert [e["field"] for e in body["errors"]] == ["builds.0.source", "builds.1.source"]
    assert await here.rows(Batch) == []


async def test_a_rolled_back_end_does_not_count(here: World) -> None:
    batch = await send(here, order(here, 1))
    build = batch["items"][0]["build_id"]
    with pytest.raises(ZeroDivisionError):
        await fails_late(here, build)
    assert (await here.one(Batch, id=batch["id"])).unfinished == 1
    await here.http.post(f"/v1/builds/{build}/cancel")
    assert len(await ends(here)) == 1


async def fails_late(here: World, build_id: str) -> None:
    async with here.context.sessions.begin() as session:
        build = await session.get(Build, build_id, with_for_update=True)
        assert build is not None
        await cancel(here.context, session, build)
        raise ZeroDivisionError


async def test_a_batch_is_canceled_as_one(here: World) -> None:
    batch = await send(here, *(order(here, n, "echo") for n in range(3)))
    first = batch["items"][0]["build_id"]
    await here.http.post(f"/v1/builds/{first}/cancel")
    for _ in range(2):
        answer = await here.http.post(f"/v1/batches/{batch['id']}/cancel")
        assert (answer.status_code, answer.json()["builds"]) == (200, {"canceled": 3})
    assert len(await ends(here)) == 1
    await here.jobs()
    assert here.yard.launched == []


async def test_the_same_key_sends_one_batch(here: World) -> None:
    body = {"builds": [order(here, 1), {}]}
    first = await here.http.post("/v1/batches", json=body, headers={"Idempotency-Key": "k1"})
    again = await here.http.post("/v1/batches", json=body, headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (202, first.json(), "true")
    assert len(await here.rows(Build)) == 1


async def test_the_same_key_at_once_sends_one_batch(here: World) -> None:
    body, headers = {"builds": [order(here, n) for n in range(20)]}, {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(here.http.post("/v1/batches", json=body, headers=headers) for _ in range(6)))
    (batch,) = await here.rows(Batch)
    assert {a.json()["id"] for a in answers if a.status_code == 202} == {batch.id}
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency_in_flight")
    assert len(await here.rows(Build)) == batch.accepted == 20


async def test_each_build_of_a_batch_counts(here: World) -> None:
    await here.sql("update project set max_queued_builds = 2")
    batch = await send(here, {}, *(order(here, n, f"svc-{n}") for n in range(4)))
    reasons = [i["problem"] and (i["problem"]["status"], i["problem"]["reason"]) for i in batch["items"][1:]]
    assert reasons == [None, None, (429, "too_many_queued"), (429, "too_many_queued")]
    assert {s.name for s in await here.rows(Service)} == {"svc-0", "svc-1"}
    problem(await here.http.post("/v1/batches", json={"builds": [order(here, 9)]}), 429, "too_many_queued")
    assert len(await here.rows(Build)) == 2


async def test_batches_and_their_items_come_page_by_page(here: World) -> None:
    ids = [(await send(here, *(order(here, n) for n in range(5))))["id"] for _ in range(3)]
    answer = await here.http.get("/v1/batches", params={"limit": 2})
    page = answer.json()
    rest = (await here.http.get(answer.links["next"]["url"])).json()
    assert [b["id"] for b in [*page["items"], *rest["items"]]] == ids[::-1]
    assert page["items"][0]["builds"] == {"queued": 5}
    at = page["items"][0]["created_at"]
    for query, wanted in (({"since": at}, ids[2:]), ({"until": at}, ids[1::-1])):
        assert [b["id"] for b in (await here.http.get("/v1/batches", params=query)).json()["items"]] == wanted
    batch, seen, cursor = {"id": ids[0]}, list[int](), None
    while cursor is not None or not seen:
        found = await look(here, batch, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [i["index"] for i in found["items"]]
        cursor = found["next_cursor"]
    assert seen == [0, 1, 2, 3, 4]


async def test_another_project_s_batch_is_not_there(here: World) -> None:
    batch = await send(here, order(here, 1))
    _, other = await here.project("acme")
    async with other:
        problem(await other.get(f"/v1/batches/{batch['id']}"), 404, "batch_not_found")
        problem(await other.post(f"/v1/batches/{batch['id']}/cancel"), 404, "batch_not_found")
        assert (await other.get("/v1/batches")).json()["items"] == []
    assert (await here.rows(Build))[0].status == "queued"


async def test_five_hundred_are_a_few_statements(here: World) -> None:
    """Whatever their number: what is written goes by the table, not by the build."""
    seen: list[str] = []
    async with here.context.pool.acquire() as connection:  # the one that all requests of this test have in turn
        connection.add_query_logger(lambda record: seen.append(record.query))
    counts = []
    for size in (5, 6, 500):  # at first the driver asks for types, too
        seen.clear()
        batch = await send(
            here, *(order(here, 1000 * size + n, f"svc-{n % 5}", secrets={"K": "v"}) for n in range(size))
        )
        assert batch["accepted"] == size
        counts.append(len(seen))
    assert len(await here.rows(Build)) == 511
    assert 8 <= counts[1] == counts[2] <= 16, counts
