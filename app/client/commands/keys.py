"""``slipway keys`` and ``slipway projects``: who may call, and on whose behalf."""

from typing import Annotated, TypedDict, Unpack

import typer

from app.client.command import Caller, Listing, command
from app.client.failed import Json, usage
from app.client.options import Limit, given, moment, segment
from app.client.screen import age, get

group = typer.Typer(cls=Listing, help="API keys: list (the default), create, rotate, revoke.")
projects = typer.Typer(
    cls=Listing, help="Projects: list (the default), create, show, set. Making them is the operator's."
)

Id = Annotated[str, typer.Argument(metavar="KEY", help="Its id, key_….", callback=segment)]
Project = Annotated[str | None, typer.Option(help="Of another project; for the operator.")]
ProjectName = Annotated[str, typer.Argument(metavar="NAME", help="The project's name.", callback=segment)]


class Limits(TypedDict):
    """The limits of a project, as they are given."""

    max_builds: Annotated[
        str | None, typer.Option(metavar="N", help="Builds at a time; `default`: the installation's.")
    ]
    max_queued: Annotated[str | None, typer.Option(metavar="N", help="Builds that wait.")]
    max_per_day: Annotated[str | None, typer.Option(metavar="N", help="Builds in a day.")]
    max_services: Annotated[str | None, typer.Option(metavar="N", help="Services.")]


KEYS = (
    ("id", get("id")),
    ("name", get("name")),
    ("begins with", get("prefix")),
    ("scopes", get("scopes")),
    ("last used", age("last_used_at")),
    ("good until", get("expires_at")),
    ("revoked", age("revoked_at")),
    ("made", age("created_at")),
)
PROJECTS = (
    ("name", get("name")),
    ("id", get("id")),
    ("builds at a time", get("max_concurrent_builds")),
    ("waiting", get("max_queued_builds")),
    ("in a day", get("max_builds_per_day")),
    ("services", get("max_services")),
    ("made", age("created_at")),
)


def create(caller: Caller, name: str, *, project: str | None, scopes: list[str] | None, expires: str | None) -> None:
    """Make a key and print it: it is shown this once."""
    until = moment(expires, "--expires", ago=False).isoformat() if expires else None
    body = given(name=name, project=project, scopes=scopes, expires_at=until)
    _made(caller, caller.api.call("POST", "/v1/keys", json=body))


@command(group, "list")
def list_keys(
    caller: Caller,
    *,
    project: Project = None,
    ended: Annotated[bool, typer.Option("--ended", help="With those that are good no more.")] = False,
    limit: Limit = 50,
) -> None:
    """List keys, newest first; never their text."""
    params = {"project": project, "ended": "true" if ended else None}
    caller.screen.table(caller.api.pages("/v1/keys", limit, params), *KEYS)


@command(group)
def rotate(
    caller: Caller,
    key_id: Id,
    *,
    project: Project = None,
    overlap: Annotated[int | None, typer.Option(help="Seconds that the old one stays good; else a day.")] = None,
) -> None:
    """Make a key's successor and print it; both are good until the overlap is over."""
    body = given(overlap_seconds=overlap)
    _made(caller, caller.api.call("POST", f"/v1/keys/{key_id}/rotate", json=body, params={"project": project}))


@command(group)
def revoke(caller: Caller, key_id: Id, *, project: Project = None) -> None:
    """End a key."""
    found = caller.api.call("DELETE", f"/v1/keys/{key_id}", params={"project": project})
    if caller.screen.as_json:
        caller.screen.document(found)
    else:
        caller.screen.text(f"{key_id} is revoked")


def _made(caller: Caller, key: Json) -> None:
    if caller.screen.as_json:
        caller.screen.document(key)
        return
    caller.screen.note(f"{key['id']}, {', '.join(key['scopes'])}; this is shown once:")
    caller.screen.text(key["key"])


@command(projects, "list")
def list_projects(caller: Caller, *, limit: Limit = 50) -> None:
    """List projects by name; your own, unless you are the operator."""
    caller.screen.table(caller.api.pages("/v1/projects", limit), *PROJECTS)


@command(projects, "create")
def create_project(
    caller: Caller, name: Annotated[str, typer.Argument(help="Its name.")], **limits: Unpack[Limits]
) -> None:
    """Make a project; it needs a key next."""
    caller.screen.show(caller.api.call("POST", "/v1/projects", json={"name": name} | _body(limits)), *PROJECTS)
    caller.screen.note(f"Its first key: slipway keys create NAME --project {name}")


@command(projects, "show")
def show_project(caller: Caller, name: ProjectName) -> None:
    """Show a project."""
    caller.screen.show(caller.api.call("GET", f"/v1/projects/{name}"), *PROJECTS)


@command(projects, "set")
def set_project(caller: Caller, name: ProjectName, **limits: Unpack[Limits]) -> None:
    """Set a project's limits; those that are not given stay."""
    caller.screen.show(caller.api.call("PATCH", f"/v1/projects/{name}", json=_body(limits)), *PROJECTS)


def _body(limits: Limits) -> Json:
    named = {
        "max_concurrent_builds": ("--max-builds", limits["max_builds"]),
        "max_queued_builds": ("--max-queued", limits["max_queued"]),
        "max_builds_per_day": ("--max-per-day", limits["max_per_day"]),
        "max_services": ("--max-services", limits["max_services"]),
    }
    found: Json = {}
    for field, (option, text) in named.items():
        if text is not None and text != "default" and not text.isdecimal():
            raise usage(f"{option} takes a number or `default`, not {text!r}")
        if text is not None:
            found[field] = None if text == "default" else int(text)
    return found
