"""``slipway builds``: look at builds, end them, try them again."""

from typing import Annotated

import typer

from app.client.command import Caller, Listing, command
from app.client.options import CancelOnInterrupt, Limit, NoWait, segment
from app.client.screen import age, get
from app.client.watch import diagnostic, report, watch

group = typer.Typer(cls=Listing, help="Builds: list (the default), show, cancel, retry.")

Id = Annotated[str, typer.Argument(metavar="BUILD", help="Its id, bld_….", callback=segment)]


@command(group, "list")
def list_builds(
    caller: Caller,
    *,
    status: Annotated[str | None, typer.Option(help="Such as failed or queued.")] = None,
    platform: Annotated[str | None, typer.Option(help="Where they run.")] = None,
    service: Annotated[str | None, typer.Option(help="A service's name.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="All must match.")] = None,
    limit: Limit = 20,
) -> None:
    """List builds, newest first."""
    params = {"status": status, "platform": platform, "service": service, "label": label}
    caller.screen.table(
        caller.api.pages("/v1/builds", limit, params),
        ("build", get("id")),
        ("status", get("status")),
        ("service", get("service")),
        ("platform", get("platform")),
        ("reason", get("reason")),
        ("sent", age("created_at")),
        ("labels", get("labels")),
    )


@command(group)
def show(caller: Caller, build: Id) -> None:
    """Show all that is known of a build."""
    found = caller.api.call("GET", f"/v1/builds/{build}")
    caller.screen.show(
        found,
        ("build", get("id")),
        ("status", get("status")),
        ("service", get("service")),
        ("address", get("url")),
        ("platform", get("platform")),
        ("builder", get("builder_platform")),
        ("source", get("source_digest")),
        ("image", get("artifact", "digest")),
        ("reason", get("reason")),
        ("message", get("message")),
        ("advice", get("failure", "advice")),
        ("next move", get("failure", "owner")),
        ("diagnostics", lambda b: "\n".join(diagnostic(d) for d in b["diagnostics"])),
        ("tried", lambda b: "\n".join(f"{t['platform']}: {t['message']}" for t in b["tried"])),
        ("runs", lambda b: [f"{r['attempt']} {r['status']} on {r['platform']}" for r in b["runs"]]),
        ("seconds", get("timings")),
        ("warnings", lambda b: "\n".join(b["warnings"])),
        ("labels", get("labels")),
        ("retry of", get("retry_of")),
        ("sent", age("created_at")),
    )


@command(group)
def cancel(caller: Caller, build: Id) -> None:
    """End a build that is under way."""
    found = caller.api.call("POST", f"/v1/builds/{build}/cancel")
    if caller.screen.as_json:
        caller.screen.document(found)
    else:
        caller.screen.text(f"{build} is {found['status']}")


@command(group)
def retry(
    caller: Caller, build: Id, *, no_wait: NoWait = False, cancel_on_interrupt: CancelOnInterrupt = False
) -> None:
    """Send an ended build again: same source, same secrets, a new build."""
    sent = caller.api.call("POST", f"/v1/builds/{build}/retry")
    if no_wait:
        raise SystemExit(report(caller.screen, sent))
    watch(caller, sent["id"], cancel=cancel_on_interrupt)
