"""``slipway services``, ``rollback`` and moving: what becomes of what runs."""

import sys
from typing import Annotated

import typer

from app.client.command import Caller, Listing, command
from app.client.failed import Json, usage
from app.client.options import Limit, NoWait, given, segment
from app.client.releases import COLUMNS, until_live
from app.client.screen import age, get

group = typer.Typer(cls=Listing, help="Services: list (the default), show, releases, wake, sleep, delete.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.", callback=segment)]
FIELDS = (
    ("service", get("name")),
    ("status", get("status")),
    ("address", get("url")),
    ("platform", get("platform")),
    ("release", get("live_release", "number")),
    ("image", get("live_release", "digest")),
    ("secrets", get("live_release", "secrets")),
    ("reason", get("reason")),
    ("message", get("message")),
    ("starts", get("starts")),
    ("last wake, ms", get("wake_ms")),
    ("last request", age("last_request_at")),
    ("made", age("created_at")),
)


@command(group, "list")
def list_services(
    caller: Caller,
    *,
    status: Annotated[str | None, typer.Option(help="Such as asleep or running.")] = None,
    platform: Annotated[str | None, typer.Option(help="Where they run.")] = None,
    limit: Limit = 50,
) -> None:
    """List services, newest first."""
    found = caller.api.pages("/v1/services", limit, {"status": status, "platform": platform})
    shown = [field for field in FIELDS if field[0] in {"service", "status", "platform", "release", "address"}]
    caller.screen.table(found, *shown)


@command(group)
def show(caller: Caller, name: Name) -> None:
    """Show a service and its live release."""
    caller.screen.show(caller.api.call("GET", f"/v1/services/{name}"), *FIELDS)


@command(group)
def releases(caller: Caller, name: Name, *, limit: Limit = 20) -> None:
    """List a service's releases, newest first."""
    found = caller.api.pages(f"/v1/services/{name}/releases", limit)
    caller.screen.table(found, *COLUMNS, ("made", age("created_at")))


@command(group)
def wake(caller: Caller, name: Name) -> None:
    """Wake a service; done once it listens."""
    _told(caller, caller.api.call("POST", f"/v1/services/{name}/wake", patient=False))


@command(group)
def sleep(caller: Caller, name: Name) -> None:
    """Put a service to sleep now."""
    _told(caller, caller.api.call("POST", f"/v1/services/{name}/sleep"))


@command(group)
def delete(
    caller: Caller, name: Name, *, yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False
) -> None:
    """Remove a service with all its releases; its name is free at once."""
    if not yes:
        if not sys.stdin.isatty():
            raise usage(f"whether {name} shall be deleted can't be asked here", "Say so with --yes.")
        typer.confirm(f"Delete {name} and all its releases?", abort=True, err=True)
    caller.api.call("DELETE", f"/v1/services/{name}")
    if caller.screen.as_json:
        caller.screen.document({"name": name, "deleted": True})
    else:
        caller.screen.text(f"{name} is deleted")


def _told(caller: Caller, service: Json) -> None:
    if caller.screen.as_json:
        caller.screen.document(service)
    else:
        caller.screen.text(f"{service['name']} is {service['status']}")


def rollback(
    caller: Caller,
    name: Name,
    *,
    to: Annotated[str | None, typer.Option(help="A release's number or id; else the one before the live one.")] = None,
    no_wait: NoWait = False,
) -> None:
    """Go back to an earlier release, as a new one."""
    body = given(release_id=_release_id(caller, name, to) if to else None)
    _taken(caller, name, caller.api.call("POST", f"/v1/services/{name}/rollback", json=body), wait=not no_wait)


def move(caller: Caller, name: str, platform: str, keep: int | None, regions: list[str] | None, *, wait: bool) -> None:
    """Move a service to another platform."""
    body = given(platform=platform, keep_seconds=keep, regions=regions)
    release = caller.api.call("POST", f"/v1/services/{name}/migrate", json=body)
    if release["url_changes"]:
        caller.screen.note(
            f"the address will change; for {release['keep_seconds']} s {release['old_url']} stays", "yellow"
        )
    _taken(caller, name, release, wait=wait)


def _release_id(caller: Caller, name: str, to: str) -> str:
    if not to.isdecimal():
        return to
    found = caller.api.pages(f"/v1/services/{name}/releases", sys.maxsize)
    if (release := next((r for r in found if r["number"] == int(to)), None)) is None:
        raise usage(f"{name} has no release {to}", f"`slipway services releases {name}` lists them.")
    return str(release["id"])


def _taken(caller: Caller, name: str, release: Json, *, wait: bool) -> None:
    for warning in release["warnings"]:
        caller.screen.note(f"warning: {warning}", "yellow")
    if wait:
        until_live(caller, name, release)
    elif caller.screen.as_json:
        caller.screen.document(release)
    else:
        caller.screen.text(release["id"])
