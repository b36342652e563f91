"""The command line: a client of the API, and the operator's side: ``slipway serve``, its parts and what they need.

Only the operator's commands load the server's code, so that a client's begin at once.
"""

import gc
from enum import StrEnum
from types import ModuleType
from typing import Annotated

import typer

from app import __version__
from app.client.command import Caller, command
from app.client.commands import builds, deploy, follow, keys, login, services, webhooks
from app.client.failed import usage
from app.client.options import NoWait, segment

HELP = "Build agents in ephemeral builders, run them as services that sleep when nobody calls."
CLIENT, OPERATOR = "Client of the API", "Operator"

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=HELP, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def _operate() -> ModuleType:
    """Load the server's side. Nothing of it is garbage: to look for some meanwhile took a sixth of a start."""
    gc.disable()
    try:
        from app import operate  # noqa: PLC0415 - it takes longer than all that a client does
    finally:
        gc.enable()
    return operate


command(app, panel=CLIENT)(deploy.deploy)
command(app, panel=CLIENT)(deploy.build)
command(app, panel=CLIENT)(follow.logs)
command(app, panel=CLIENT)(follow.events)
command(app, panel=CLIENT)(services.rollback)
app.add_typer(builds.group, name="builds", rich_help_panel=CLIENT)
app.add_typer(services.group, name="services", rich_help_panel=CLIENT)
command(app, panel=CLIENT)(login.platforms)
command(app, panel=CLIENT)(login.login)
command(app, panel=CLIENT)(login.logout)
app.add_typer(keys.group, name="keys", rich_help_panel=CLIENT)
app.add_typer(keys.projects, name="projects", rich_help_panel=CLIENT)
app.add_typer(webhooks.group, name="webhooks", rich_help_panel=CLIENT)


@command(keys.group, "create")
def keys_create(
    caller: Caller,
    name: Annotated[str, typer.Argument(help="What it is for.")] = "unnamed",
    *,
    project: keys.Project = None,
    scope: Annotated[list[str] | None, typer.Option(help="What it may do; all if not given.")] = None,
    expires: Annotated[str | None, typer.Option(help="Until when it is good: 30d, 12h or a time.")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="In the database itself: for the first key, or when none is left.")
    ] = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    if not direct:
        keys.create(caller, name, project=project, scopes=scope, expires=expires)
    elif expires or caller.screen.as_json:
        raise usage("--direct makes a key that is good until it is revoked, and prints it alone")
    else:
        _operate().create_key(name, project, scope or [])


@command(app, panel=CLIENT)
def migrate(
    caller: Caller,
    name: Annotated[str | None, typer.Argument(help="The service to move.", callback=segment)] = None,
    *,
    to: Annotated[str | None, typer.Option(metavar="PLATFORM", help="Where it shall run.")] = None,
    keep: Annotated[int | None, typer.Option(help="Seconds that the old platform keeps it; else an hour.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Of the new platform.")] = None,
    no_wait: NoWait = False,
) -> None:
    """Move a service to another platform. Without a name: bring the schema of DATABASE_URL up to date."""
    if name is not None and to is not None:
        services.move(caller, name, to, keep, region, wait=not no_wait)
    elif name is not None or to or keep or region:
        raise usage("to move a service takes its name and --to PLATFORM")
    else:
        _operate().migrate()


@app.command(rich_help_panel=OPERATOR)
def serve(
    *,
    imitate: Annotated[str | None, typer.Option("--imitate", help="Platforms to run a stand-in of: fly,koyeb")] = None,
) -> None:
    """Run API, gateway and worker in one process, with everything embedded that isn't set."""
    _operate().serve(imitate)


@app.command(rich_help_panel=OPERATOR)
def api() -> None:
    """Run the API alone; needs DATABASE_URL."""
    _operate().api()


@app.command(rich_help_panel=OPERATOR)
def worker(
    *,
    local: Annotated[bool, typer.Option("--local", help="Own this host's local platform.")] = False,
) -> None:
    """Run the worker alone; needs DATABASE_URL."""
    _operate().worker(local=local)


@app.command(rich_help_panel=OPERATOR)
def gateway() -> None:
    """Run the gateway alone; needs DATABASE_URL."""
    _operate().gateway()


@app.command(rich_help_panel=OPERATOR)
def secret_keys(
    *,
    in_use: Annotated[
        bool, typer.Option("--in-use", help="Show what needs each key of this installation instead.")
    ] = False,
) -> None:
    """Print a fresh value for SLIPWAY_SECRET_KEYS."""
    _operate().secret_keys(in_use=in_use)


@app.command(rich_help_panel=OPERATOR)
def seed() -> None:
    """Compile Go's standard library once, so that the first build need not."""
    _operate().seed()


class DemoPlatform(StrEnum):
    """Where a demo may be."""

    LOCAL = "local"
    FLY = "fly"
    KOYEB = "koyeb"
    NORTHFLANK = "northflank"
    RAILWAY = "railway"


@app.command(rich_help_panel=OPERATOR)
def demo(
    *,
    platform: Annotated[
        DemoPlatform, typer.Option("--platform", help="Where; all but `local` are imitated.")
    ] = DemoPlatform.LOCAL,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up at the end, until Ctrl-C.")] = False,
) -> None:
    """Show the whole way on this machine: build, deploy, sleep, wake, roll out, roll back, delete."""
    from app import demo as show  # noqa: PLC0415 - only this command needs it

    raise SystemExit(show.demo(platform, keep=keep))


@app.command(rich_help_panel=OPERATOR)
def check(
    platform: Annotated[str, typer.Argument(help="The platform's name, such as local or fly.")],
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out sleep and wake, which may take minutes.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Note a success on the real platform.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> None:
    """Prove a platform: credentials, registry, callback, a build, a service, its sleep and wake; then clean up."""
    from app import checkup  # noqa: PLC0415 - only this command needs it

    settings = _operate().read_settings()
    raise SystemExit(checkup.check(platform, settings, quick=quick, record=record, as_json=as_json))


@app.command(rich_help_panel=OPERATOR)
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry of the ``slipway`` command."""
    app()


if __name__ == "__main__":
    main()
