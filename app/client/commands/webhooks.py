"""``slipway webhooks``: who is told of events."""

from typing import Annotated

import typer

from app.client.command import Caller, Listing, command
from app.client.failed import Json
from app.client.options import Limit, given, segment
from app.client.screen import age, get

group = typer.Typer(
    cls=Listing, help="Webhooks: list (the default), create, update, delete, rotate, test, deliveries, redeliver."
)

Id = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id, whk_….", callback=segment)]
Events = Annotated[list[str] | None, typer.Option("--event", help="Such as build.failed, or build.*; else all.")]
FIELDS = (
    ("id", get("id")),
    ("url", get("url")),
    ("events", get("events")),
    ("status", get("status")),
    ("reason", get("reason")),
    ("last delivered", age("last_delivered_at")),
    ("description", get("description")),
)
DELIVERY = (
    ("id", get("id")),
    ("event", get("kind")),
    ("status", get("status")),
    ("attempts", get("attempts")),
    ("answer", get("status_code")),
    ("error", get("error")),
    ("made", age("created_at")),
)


@command(group, "list")
def list_webhooks(caller: Caller, *, limit: Limit = 50) -> None:
    """List endpoints, newest first."""
    caller.screen.table(caller.api.pages("/v1/webhooks", limit), *FIELDS)


@command(group)
def create(
    caller: Caller,
    address: Annotated[str, typer.Argument(metavar="URL", help="Where to send: https, at a public address.")],
    *,
    event: Events = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
) -> None:
    """Make an endpoint and print its signing secret: it is shown this once."""
    body = given(url=address, events=event, description=description)
    _secret(caller, caller.api.call("POST", "/v1/webhooks", json=body))


@command(group)
def update(
    caller: Caller,
    webhook: Id,
    *,
    address: Annotated[str | None, typer.Option("--to", metavar="URL", help="Another address.")] = None,
    event: Events = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether anything is sent.")] = None,
) -> None:
    """Change an endpoint."""
    status = None if enable is None else "enabled" if enable else "disabled"
    body = given(url=address, events=event, status=status)
    caller.screen.show(caller.api.call("PATCH", f"/v1/webhooks/{webhook}", json=body), *FIELDS)


@command(group)
def delete(caller: Caller, webhook: Id) -> None:
    """Remove an endpoint with its deliveries."""
    caller.api.call("DELETE", f"/v1/webhooks/{webhook}")
    if caller.screen.as_json:
        caller.screen.document({"id": webhook, "deleted": True})
    else:
        caller.screen.text(f"{webhook} is deleted")


@command(group)
def rotate(caller: Caller, webhook: Id) -> None:
    """Make a new signing secret and print it; the one before it signs too for a day."""
    _secret(caller, caller.api.call("POST", f"/v1/webhooks/{webhook}/rotate"))


@command(group)
def test(caller: Caller, webhook: Id) -> None:
    """Send a webhook.test."""
    caller.screen.show(caller.api.call("POST", f"/v1/webhooks/{webhook}/test"), *DELIVERY)


@command(group)
def deliveries(
    caller: Caller,
    webhook: Id,
    *,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Limit = 20,
) -> None:
    """List what was sent, newest first."""
    found = caller.api.pages(f"/v1/webhooks/{webhook}/deliveries", limit, {"status": status})
    caller.screen.table(found, *DELIVERY)


@command(group)
def redeliver(
    caller: Caller,
    webhook: Id,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Its id.", callback=segment)],
) -> None:
    """Send a delivery again."""
    path = f"/v1/webhooks/{webhook}/deliveries/{delivery}/redeliver"
    caller.screen.show(caller.api.call("POST", path), *DELIVERY)


def _secret(caller: Caller, webhook: Json) -> None:
    if caller.screen.as_json:
        caller.screen.document(webhook)
        return
    caller.screen.note(f"{webhook['id']}; its signing secret is shown once:")
    caller.screen.text(webhook["secret"])
