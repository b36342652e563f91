"""Endpoints as their owner sees them: made, changed, listed, removed; whose they are, and what is never shown."""

from pathlib import Path
from typing import Any

import pytest

from app.api.webhook_schemas import WebhookOut
from app.builds import retention
from app.models import SecretVersion, Webhook, WebhookDelivery
from app.webhooks.endpoints import MAX_ENDPOINTS
from tests.support.problems import problem
from tests.support.receiver import reply
from tests.support.world import world
from tests.webhooks.conftest import Hooks

URL = "https://hooks.example.com/slipway"


async def test_an_endpoint_is_made_changed_and_removed(hooks: Hooks) -> None:
    http = hooks.here.http
    made = await http.post("/v1/webhooks", json={"url": URL, "events": ["build.*"], "description": "dashboard"})
    body = made.json()
    assert made.status_code == 201
    path = made.headers["location"]
    assert path == f"/v1/webhooks/{body['id']}"
    assert body["secret"].startswith("whsec_")
    assert (body["status"], body["events"], body["description"]) == ("enabled", ["build.*"], "dashboard")
    seen = (await http.get(path)).json()
    assert seen == {k: v for k, v in body.items() if k != "secret"}
    assert set(seen) == set(WebhookOut.model_fields)
    changed = (await http.patch(path, json={"events": ["*"], "url": f"{URL}/2"})).json()
    assert (changed["events"], changed["url"], changed["description"]) == (["*"], f"{URL}/2", "dashboard")
    off = (await http.patch(path, json={"status": "disabled"})).json()
    assert (off["status"], off["reason"]) == ("disabled", "by_request")
    assert off["disabled_at"]
    again = (await http.patch(path, json={"status": "disabled", "description": "x"})).json()
    assert again["disabled_at"] == off["disabled_at"]
    on = (await http.patch(path, json={"status": "enabled"})).json()
    assert (on["status"], on["reason"], on["disabled_at"]) == ("enabled", None, None)
    other = await hooks.add()
    items = (await http.get("/v1/webhooks", params={"limit": 1})).json()
    assert [w["id"] for w in items["items"]] == [other["id"]]
    rest = (await http.get("/v1/webhooks", params={"cursor": items["next_cursor"]})).json()
    assert ([w["id"] for w in rest["items"]], rest["next_cursor"]) == ([body["id"]], None)
    assert (await http.delete(path)).status_code == 204
    problem(await http.get(path), 404, "webhook_not_found")
    assert [s.webhook_id for s in await hooks.here.rows(SecretVersion)] == [other["id"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"), ({"url": "http://hooks.example.com/"}, "url"), ({"url": "https://127.0.0.2/"}, "url"),
        ({"url": "https://[fd00::1]/"}, "url"), ({"url": URL + "x" * 2048}, "url"), ({"url": URL + "/\u0000"}, "url"),
        ({"url": URL, "events": []}, "events"), ({"url": URL, "events": ["bulid.*"]}, "events.0"),
        ({"url": URL, "events": ["build"]}, "events.0"), ({"url": URL, "description": "x" * 256}, "description"),
        ({"url": URL, "secret": "whsec_mine"}, "secret"),
    ],
)  # fmt: skip
async def test_what_can_t_be_taken_names_its_field(hooks: Hooks, body: dict[str, Any], field: str) -> None:
    found = problem(await hooks.here.http.post("/v1/webhooks", json=body), 422, "invalid_request")
    assert found["errors"][0]["field"] == field
    assert await hooks.here.rows(Webhook) == []


async def test_changes_are_held_to_the_same(hooks: Hooks) -> None:
    hook = await hooks.add()
    path = f"/v1/webhooks/{hook['id']}"
    for body, field in (
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"status": "off"}, "status"),
        ({"events": []}, "events"),
    ):
        found = problem(await hooks.here.http.patch(path, json=body), 422, "invalid_request")
        assert found["errors"][0]["field"] == field
    found = problem(
        await hooks.here.http.post(f"{path}/rotate", json={"overlap_seconds": 604801}), 422, "invalid_request"
    )
    assert found["errors"][0]["field"] == "overlap_seconds"
    assert (await hooks.here.http.get(path)).json()["url"] == hook["url"]


async def test_every_event_there_is_belongs_to_a_family_that_can_be_asked_for(hooks: Hooks) -> None:
    hook = await hooks.add()
    await hooks.here.deployed("echo")
    kinds = {r.kind for r in await hooks.here.sql("select distinct kind from event")}
    assert len(kinds) > 8
    for kind in kinds | {"webhook.disabled"}:
        for pattern in (kind, f"{kind.partition('.')[0]}.*"):
            answer = await hooks.here.http.patch(f"/v1/webhooks/{hook['id']}", json={"events": [pattern]})
            assert answer.status_code == 200, answer.text


async def test_another_project_s_endpoints_are_not_there_and_not_told(hooks: Hooks) -> None:
    hook = await hooks.add()
    await hooks.happen("build.queued")
    await hooks.ended()
    (delivery,) = await hooks.deliveries()
    path = f"/v1/webhooks/{hook['id']}"
    _, other = await hooks.here.project("acme")
    async with other:
        mine = (await other.post("/v1/webhooks", json={"url": f"{hooks.receiver.url}/acme"})).json()
        for method, route in (
            ("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/rotate"), ("POST", f"{path}/test"),
            ("GET", f"{path}/deliveries"), ("POST", f"{path}/deliveries/{delivery.id}/redeliver"),
        ):  # fmt: skip
            problem(
                await other.request(method, route, json={} if method == "PATCH" else None), 404, "webhook_not_found"
            )
        theirs = f"/v1/webhooks/{mine['id']}/deliveries/{delivery.id}/redeliver"
        problem(await other.post(theirs), 404, "delivery_not_found")
        assert [w["id"] for w in (await other.get("/v1/webhooks")).json()["items"]] == [mine["id"]]
    await hooks.happen("build.failed")
    await hooks.ended()
    assert {r.path for r in hooks.receiver.got} == {"/hook"}


async def test_a_project_has_so_many_and_no_more(hooks: Hooks) -> None:
    await hooks.add()
    await hooks.here.sql(
        "insert into webhook (id, project_id, url, secret_id, xid) "
        "select 'whk_' || n, project_id, url, secret_id, xid from webhook, generate_series(2, :most) n",
        most=MAX_ENDPOINTS,
    )
    problem(await hooks.here.http.post("/v1/webhooks", json={"url": URL}), 409, "too_many_webhooks")


async def test_deliveries_are_listed_page_by_page(hooks: Hooks) -> None:
    hook = await hooks.add()
    hooks.receiver.answer = lambda r: reply(500 if r.kind == "build.failed" else 204)
    await hooks.happen("build.queued", "build.building", "build.failed")
    await hooks.until(lambda: len(hooks.receiver.got) == 3)
    path = f"/v1/webhooks/{hook['id']}/deliveries"
    first = (await hooks.here.http.get(path, params={"limit": 2})).json()
    rest = (await hooks.here.http.get(path, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    items = [*first["items"], *rest["items"]]
    assert [d["kind"] for d in items] == ["build.failed", "build.building", "build.queued"]
    assert rest["next_cursor"] is None
    assert (items[0]["status"], items[0]["attempts"], items[0]["status_code"]) == ("pending", 1, 500)
    assert items[0]["next_attempt_at"]
    assert items[0]["ms"] >= 0
    assert (items[1]["status"], items[1]["error"], items[1]["next_attempt_at"]) == ("delivered", None, None)
    failed = (await hooks.here.http.get(path, params={"status": "pending"})).json()["items"]
    assert [d["id"] for d in failed] == [items[0]["id"]]


async def test_deliveries_go_with_the_events_and_secrets_stay_while_they_sign(hooks: Hooks) -> None:
    hook = await hooks.add()
    path = f"/v1/webhooks/{hook['id']}"
    await hooks.here.http.post(f"{path}/rotate", json={"overlap_seconds": 60})
    await hooks.happen("build.queued")
    await hooks.ended()
    await hooks.here.sql("update secret_version set created_at = now() - interval '400 days'")
    removed = await retention.keep(hooks.here.context)
    assert (removed["webhook_delivery"], removed["secret_version"]) == (0, 0)
    await hooks.here.sql("update webhook_delivery set created_at = now() - interval '91 days'")
    await hooks.here.sql("update webhook set old_secret_until = now() - interval '1 s'")
    removed = await retention.keep(hooks.here.context)
    assert (removed["webhook_delivery"], removed["secret_version"]) == (1, 1)
    assert await hooks.here.rows(WebhookDelivery) == []
    await hooks.happen("build.failed")
    await hooks.ended()
    assert hooks.receiver.kinds()[-1] == "build.failed"


async def test_nothing_is_allowed_by_default(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path / "home") as here:
        for url in ("http://127.0.0.1:9/", "https://127.0.0.1/", "http://localhost/", "http://hooks.example.com/"):
            problem(await here.http.post("/v1/webhooks", json={"url": url}), 422, "invalid_request")


async def test_the_description_has_what_is_sent(hooks: Hooks) -> None:
    described = hooks.here.app.openapi()
    (message,) = described["webhooks"].values()
    assert message["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/WebhookMessage"
    }
    assert set(message["post"]["responses"]) == {"200", "410", "default"}
