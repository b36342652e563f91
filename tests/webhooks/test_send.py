"""What endpoints get, in which order, how often, and what becomes of those that don't take it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from app.api.views import event_out
from app.models import Event
from app.webhooks import send
from app.webhooks.plan import plan
from tests.support.metrics import scrape
from tests.support.problems import problem
from tests.support.receiver import Received, Reply, reply
from tests.support.waiting import eventually, free_port
from tests.webhooks.conftest import Hooks

Json = dict[str, Any]


def verifies(request: Received, secret: str) -> bool:
    try:
        Verifier(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


async def test_an_endpoint_is_told_of_what_happens_in_its_form_and_order(hooks: Hooks) -> None:
    await hooks.happen("build.queued", build="bld_before")
    hook = await hooks.add()
    build = await hooks.here.submit("echo")
    await hooks.here.jobs()
    await hooks.ended()
    kinds = await hooks.here.kinds(build_id=build.id)
    assert hooks.receiver.kinds() == kinds
    assert len(kinds) > 2
    events = await hooks.here.rows(Event, build_id=build.id)
    for request, event in zip(hooks.receiver.taken, events, strict=True):
        assert verifies(request, hook["secret"])
        assert request.id == f"evt_{hooks.here.context.installation}_{event.id}"
        at = event.at.isoformat().replace("+00:00", "Z")
        shown = event_out(event).model_dump(mode="json")
        assert request.message == {"type": event.kind, "timestamp": at, "data": shown}
        assert request.headers["content-type"] == "application/json"
        assert request.headers["traceparent"] == build.traceparent
    assert not verifies(hooks.receiver.taken[0], (await hooks.add())["secret"])
    assert (await hooks.webhook(hook)).last_delivered_at is not None


async def test_only_what_it_wants(hooks: Hooks) -> None:
    await hooks.add(events=["build.*", "service.failed"])
    await hooks.happen("build.queued", "builder.x", "service.running", "service.failed", "run.failed", "build.failed")
    await hooks.ended()
    assert sorted(hooks.receiver.kinds()) == ["build.failed", "build.queued", "service.failed"]


async def test_the_end_of_a_batch_is_told_once(hooks: Hooks) -> None:
    hook = await hooks.add(events=["batch.*"])
    sent = await hooks.here.http.post("/v1/batches", json={"builds": [hooks.here.order(), hooks.here.order(), {}]})
    await hooks.here.http.post(f"/v1/batches/{sent.json()['id']}/cancel")
    await hooks.ended()
    (request,) = hooks.receiver.taken
    assert verifies(request, hook["secret"])
    about = {"batch_id": sent.json()["id"], "size": 3, "accepted": 2}
    assert (request.kind, request.message["data"]["data"]) == ("batch.ended", about)


async def test_a_refused_message_comes_again_the_same_and_signed_anew(hooks: Hooks) -> None:
    hook = await hooks.add()
    answers = [reply(500), reply(404), reply(302, location=hooks.receiver.url), reply(200, b"ok")]
    hooks.receiver.answer = lambda _: answers[len(hooks.receiver.got) - 1]
    await hooks.happen("build.queued", build="bld_1")
    for tries in range(1, 4):
        await hooks.until(lambda tries=tries: len(hooks.receiver.got) == tries)  # type: ignore[misc]
        (delivery,) = await hooks.deliveries()
        assert (delivery.status, delivery.attempts, delivery.error) == (
            "pending", tries, f"answered {answers[tries - 1][0]}",
        )  # fmt: skip
        assert delivery.next_attempt_at is not None
        assert delivery.last_attempt_at is not None
        pause = delivery.next_attempt_at - delivery.last_attempt_at
        own = send.RETRY_SECONDS[tries - 1]
        assert timedelta(seconds=own * 0.85) <= pause <= timedelta(seconds=own * 1.15 + 5)
        await hooks.later()
    await hooks.ended()
    assert len({r.id for r in hooks.receiver.got}) == 1
    assert len({r.body for r in hooks.receiver.got}) == 1
    assert all(verifies(r, hook["secret"]) for r in hooks.receiver.got)
    (delivery,) = await hooks.deliveries()
    assert (delivery.status, delivery.attempts, delivery.status_code, delivery.error) == ("delivered", 4, 200, None)
    assert sum(send.RETRY_SECONDS) > timedelta(days=3).total_seconds()


async def test_attempts_are_counted_by_what_came_of_them(hooks: Hooks) -> None:
    context = hooks.here.context
    for url in (hooks.receiver.url, f"http://127.0.0.1:{free_port()}/"):
        await hooks.add(url)
    hooks.receiver.answer = lambda _: reply(204 if len(hooks.receiver.got) > 1 else 500)
    before = await scrape(context)
    await hooks.happen("build.queued", build="bld_1")
    await hooks.here.sql("update event set at = at - interval '1 minute'")
    await hooks.here.settled()
    await plan(context)
    due = await scrape(context)
    assert due("slipway_webhook_due") == 2
    assert 0 <= due("slipway_webhook_due_oldest_seconds") < 60
    await hooks.until(lambda: len(hooks.receiver.got) == 1)
    await hooks.later()
    await hooks.until(lambda: len(hooks.receiver.got) == 2)
    after = await scrape(context)

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    attempts = {o: grown("slipway_webhook_attempts_total", outcome=o) for o in ("delivered", "refused", "unreachable")}
    assert attempts == {"delivered": 1, "refused": 1, "unreachable": 2}
    assert grown("slipway_webhook_attempt_seconds_count") == 4
    assert grown("slipway_webhook_lag_seconds_count") == 2, "only a message's first attempt tells how late it is"
    assert 120 <= grown("slipway_webhook_lag_seconds_sum") < 240
    assert after("slipway_webhook_due") == 0


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("60", 60, 60), ("1", 4, 6), ("9999999", 86400, 86400), ("nan", 4, 6), ("soon", 4, 6)]
)
async def test_retry_after_is_honoured_in_bounds(hooks: Hooks, asked: str, least: int, most: int) -> None:
    await hooks.add()
    hooks.receiver.answer = lambda _: reply(429, retry_after=asked)
    await hooks.happen("build.queued")
    await hooks.until(lambda: bool(hooks.receiver.got))
    (delivery,) = await hooks.deliveries()
    assert delivery.next_attempt_at is not None
    assert delivery.last_attempt_at is not None
    pause = (delivery.next_attempt_at - delivery.last_attempt_at).total_seconds()
    assert least <= pause <= most + 5


async def test_a_build_s_messages_wait_for_each_other_and_for_nobody_else(hooks: Hooks) -> None:
    await hooks.add()
    hooks.receiver.answer = lambda r: reply(503 if r.kind == "build.queued" else 204)
    await hooks.happen("build.queued", "build.building", build="bld_a")
    await hooks.happen("build.failed", build="bld_b")
    await hooks.until(lambda: len(hooks.receiver.got) == 2)
    assert hooks.receiver.kinds() == ["build.failed"]
    await hooks.happen("build.succeeded", build="bld_a")
    await hooks.happen("build.canceled", build="bld_c")
    await hooks.until(lambda: "build.canceled" in hooks.receiver.kinds())
    assert len(hooks.receiver.got) == 3, "one overtook the one that is not delivered yet"
    hooks.receiver.answer = lambda _: reply()
    await hooks.later()
    await hooks.ended()
    assert hooks.receiver.kinds()[2:] == ["build.queued", "build.building", "build.succeeded"]


async def test_one_that_is_given_up_lets_the_next_one_go(hooks: Hooks) -> None:
    hook = await hooks.add()
    hooks.use(retry_seconds=(3600.0,))
    hooks.receiver.answer = lambda r: reply(500 if r.kind == "build.queued" else 204)
    await hooks.happen("build.queued", "build.failed", build="bld_a")
    await hooks.until(lambda: len(hooks.receiver.got) == 1)
    await hooks.happen("run.failed")  # something gets through meanwhile, so the endpoint lives
    await hooks.until(lambda: hooks.receiver.kinds() == ["run.failed"])
    await hooks.later()
    await hooks.ended()
    assert hooks.receiver.kinds() == ["run.failed", "build.failed"]
    assert [(d.status, d.attempts) for d in await hooks.deliveries(kind="build.queued")] == [("failed", 2)]
    assert (await hooks.webhook(hook)).status == "enabled"


async def test_an_endpoint_that_is_gone_or_fails_for_long_is_disabled(hooks: Hooks) -> None:
    gone, failing, good = [await hooks.add(f"{hooks.receiver.url}/{n}") for n in ("gone", "failing", "good")]
    answers: dict[str, Reply] = {"gone": reply(410), "failing": reply(500), "good": reply()}
    hooks.receiver.answer = lambda r: answers[r.path.rpartition("/")[2]]
    hooks.use(retry_seconds=(0.0, 0.0))
    await hooks.happen("build.queued", "build.failed", build="bld_a")
    await hooks.until(lambda: [r.path for r in hooks.receiver.taken].count("/hook/good") == 4)
    rows = {hook["id"]: await hooks.webhook(hook) for hook in (gone, failing, good)}
    assert [(w.status, w.reason) for w in rows.values()] == [
        ("disabled", "gone"), ("disabled", "failing"), ("enabled", None),
    ]  # fmt: skip
    told = {r.message["data"]["data"].get("webhook_id"): r.message["data"]["data"] for r in hooks.receiver.taken}
    assert told[gone["id"]] == {"webhook_id": gone["id"], "reason": "gone"}
    assert told[failing["id"]] == {"webhook_id": failing["id"], "reason": "failing"}
    tries = [d.attempts for d in await hooks.deliveries(webhook_id=failing["id"])]
    assert tries[:2] == [3, 0]
    # What is pending is kept, and goes on once it is enabled; what happened meanwhile is not made up for.
    await hooks.happen("service.failed")
    await hooks.until(lambda: "service.failed" in hooks.receiver.kinds())
    answers["failing"] = reply()
    hooks.receiver.taken.clear()
    body = (await hooks.here.http.patch(f"/v1/webhooks/{failing['id']}", json={"status": "enabled"})).json()
    assert (body["status"], body["reason"], body["disabled_at"]) == ("enabled", None, None)
    await hooks.happen("build.canceled")
    await hooks.ended()
    kinds = [r.kind for r in hooks.receiver.taken if r.path.endswith("failing")]
    assert [k for k in kinds if k != "webhook.disabled"] == ["build.failed", "build.canceled"]


async def test_nobody_answers_is_tried_again_and_says_why(hooks: Hooks) -> None:
    await hooks.add("http://127.0.0.1:1/")
    await hooks.happen("build.queued")

    async def tried() -> bool:
        await hooks.until(lambda: True)
        return [d.attempts for d in await hooks.deliveries()] == [1]

    await eventually(tried)
    (delivery,) = await hooks.deliveries()
    assert (delivery.status, delivery.status_code) == ("pending", None)
    assert (delivery.error or "").startswith("no connection")


async def test_a_secret_that_cant_be_read_is_one_endpoints_trouble(hooks: Hooks) -> None:
    """A secret key was taken away too early: all others are told, and this one is once the key is back."""
    mute, other = await hooks.add(), await hooks.add()
    lost = "update secret_version set key_id = :key where webhook_id = :id"
    (key,) = await hooks.here.sql("select key_id from secret_version where webhook_id = :id", id=mute["id"])
    await hooks.here.sql(lost, key="gone", id=mute["id"])
    await hooks.happen("build.queued")
    await hooks.until(lambda: len(hooks.receiver.taken) == 1)
    assert verifies(hooks.receiver.taken[0], other["secret"])
    (waits,) = await hooks.deliveries(webhook_id=mute["id"])
    assert (waits.status, waits.attempts, waits.error) == ("pending", 1, "the endpoint's secret can't be read")
    await hooks.here.sql(lost, key=key.key_id, id=mute["id"])
    await hooks.later()
    await hooks.until(lambda: len(hooks.receiver.taken) == 2)
    assert verifies(hooks.receiver.taken[1], mute["secret"])


async def test_after_a_rotation_both_secrets_sign_for_a_while(hooks: Hooks) -> None:
    hook = await hooks.add()
    path = f"/v1/webhooks/{hook['id']}/rotate"
    second = (await hooks.here.http.post(path, json={"overlap_seconds": 60})).json()
    assert second["secret"] != hook["secret"]
    await hooks.happen("build.queued")
    await hooks.ended()
    assert [verifies(hooks.receiver.got[-1], s) for s in (hook["secret"], second["secret"])] == [True, True]
    third = (await hooks.here.http.post(path)).json()
    await hooks.happen("build.building")
    await hooks.ended()
    secrets = (hook["secret"], second["secret"], third["secret"])
    assert [verifies(hooks.receiver.got[-1], s) for s in secrets] == [False, True, True]
    await hooks.here.sql("update webhook set old_secret_until = now()")
    await hooks.happen("build.failed")
    await hooks.ended()
    assert [verifies(hooks.receiver.got[-1], s) for s in secrets] == [False, False, True]
    # At rest they are sealed, and only those that may still sign are kept.
    rows = await hooks.here.sql("select ciphertext from secret_version where webhook_id is not null")
    assert len(rows) == 2
    assert not any(s.encode()[6:] in bytes(r.ciphertext) for s in secrets for r in rows)


async def test_a_test_and_a_redelivery(hooks: Hooks) -> None:
    hook = await hooks.add(events=["build.*"])
    path = f"/v1/webhooks/{hook['id']}"
    sent = (await hooks.here.http.post(f"{path}/test")).json()
    assert (sent["status"], sent["kind"], sent["event_id"]) == ("pending", "webhook.test", None)
    await hooks.ended()
    (test,) = hooks.receiver.taken
    assert (test.id, test.kind, test.message["data"]) == (sent["id"], "webhook.test", {"webhook_id": hook["id"]})
    assert verifies(test, hook["secret"])
    await hooks.happen("build.queued", "build.failed", build="bld_a")
    await hooks.ended()
    items = (await hooks.here.http.get(f"{path}/deliveries")).json()["items"]
    assert [d["kind"] for d in items] == ["build.failed", "build.queued", "webhook.test"]
    again = (await hooks.here.http.post(f"{path}/deliveries/{items[1]['id']}/redeliver")).json()
    assert (again["status"], again["attempts"]) == ("pending", 0)
    await hooks.ended()
    first, second = (r for r in hooks.receiver.taken if r.kind == "build.queued")
    assert (first.id, first.body) == (second.id, second.body)
    # One that waits for its next attempt is tried at once.
    hooks.receiver.answer = lambda _: reply(500)
    await hooks.happen("build.canceled", build="bld_b")
    await hooks.until(lambda: hooks.receiver.got[-1].kind == "build.canceled")
    hooks.receiver.answer = lambda _: reply()
    (waiting,) = await hooks.deliveries(status="pending")
    await hooks.here.http.post(f"{path}/deliveries/{waiting.id}/redeliver")
    await hooks.ended()
    assert hooks.receiver.kinds()[-1] == "build.canceled"
    # Not while it is disabled, not when the event is gone.
    await hooks.here.http.patch(path, json={"status": "disabled"})
    for route in ("test", f"deliveries/{waiting.id}/redeliver"):
        problem(await hooks.here.http.post(f"{path}/{route}"), 409, "webhook_disabled")
    await hooks.here.http.patch(path, json={"status": "enabled"})
    await hooks.here.sql("delete from event")
    problem(await hooks.here.http.post(f"{path}/deliveries/{waiting.id}/redeliver"), 410, "event_gone")


async def test_an_attempt_whose_sender_died_is_made_again_and_its_record_does_not_count(hooks: Hooks) -> None:
    await hooks.add()
    await hooks.happen("build.queued")
    got, may = asyncio.Event(), asyncio.Event()

    async def hold(_: Received) -> Reply:
        got.set()
        await may.wait()
        return reply()

    hooks.receiver.answer = hold
    held = hooks.courier
    while not got.is_set():
        await held.turn()
        await asyncio.sleep(0)
    (claimed,) = await hooks.deliveries()
    assert claimed.next_attempt_at is not None
    assert claimed.last_attempt_at is not None
    assert claimed.next_attempt_at - claimed.last_attempt_at == timedelta(seconds=send.LEASE_SECONDS)
    (shown,) = (await hooks.here.http.get(f"/v1/webhooks/{claimed.webhook_id}/deliveries")).json()["items"]
    assert shown["next_attempt_at"] is None
    await hooks.here.sql("update webhook_delivery set next_attempt_at = now(), sender = 'gone'")
    hooks.receiver.answer = lambda _: reply()
    hooks.use()
    await hooks.ended()
    may.set()
    await held.settle()
    (delivery,) = await hooks.deliveries()
    assert (delivery.status, delivery.attempts) == ("delivered", 2)
    assert len({r.id for r in hooks.receiver.got}) == 1


async def test_what_has_lost_its_event_is_given_up(hooks: Hooks) -> None:
    hook = await hooks.add()
    hooks.receiver.answer = lambda _: reply(500)
    await hooks.happen("build.queued")
    await hooks.until(lambda: bool(hooks.receiver.got))
    await hooks.here.sql("delete from event")
    await hooks.later()
    await hooks.ended()
    (delivery,) = await hooks.deliveries()
    assert (delivery.status, delivery.error) == ("failed", "the event is past its keeping")
    assert (await hooks.webhook(hook)).status == "enabled"
