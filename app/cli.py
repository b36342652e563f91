"""The command line: ``slipway serve`` and its parts, and what an operator needs around them."""

import asyncio
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError

from app import __version__, db, logs, serving
from app.embedded.errors import EmbeddedError
from app.errors import Refusal
from app.ground import SetupError, harden, settle
from app.keys import DEFAULT_PROJECT, project_named
from app.keys import create as create_key
from app.leases import LeaseError
from app.main import load_keyring, local_keys, open_context
from app.platforms.base import PlatformError
from app.requests import Scope
from app.secrets import KeysError, make_keys
from app.services import rewrap
from app.serving import Started
from app.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


def say(text: str) -> None:
    """Print a line for a person, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read_settings(**given: Any) -> Settings:
    """Return the settings, with those ``given`` on the command line; exits with 2 and the name of the wrong variable.

    From then on the process is closed to others of its account.
    """
    harden()
    try:
        settings = Settings(**given)
    except ValidationError as e:
        for error in e.errors(include_input=False, include_url=False):
            name = "__".join(str(p) for p in error["loc"]).upper() or "SETTINGS"
            sys.stderr.write(f"slipway: SLIPWAY_{name.removeprefix('SLIPWAY_')}: {error['msg']}\n")
        raise SystemExit(2) from None
    logs.configure(settings.log_level, settings.log_format)
    return settings


def run(main: "asyncio.Future[None] | object") -> None:
    """Run a process to its end; what the operator can mend is said in one sentence, without a traceback."""
    settle()
    try:
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(main)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (Refusal, SetupError, KeysError, EmbeddedError, LeaseError, PlatformError, ValueError) as e:
        sys.stderr.write(f"slipway: {e}\n")
        raise SystemExit(1) from None


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 - only processes that serve need it

    return uvloop.new_event_loop()


def _announce(started: Started) -> None:
    settings = started.settings
    say(f"slipway {__version__} is up")
    say(f"  API      {settings.api_url}  (docs at {settings.api_url}/docs)")
    say(f"  services {settings.service_url('<service>')}")
    say(f"  home     {settings.home}")
    if started.api_key:
        say(f"  API key  {started.api_key}  (shown once; only its hash is kept)")
    for stand_in in started.stand_ins:
        say(f"  {stand_in.name:<8} {stand_in.url}  (imitated: what is on it runs here, without a sandbox)")


@app.command()
def serve(
    *,
    imitate: Annotated[str | None, typer.Option("--imitate", help="Platforms to run a stand-in of: fly,koyeb")] = None,
) -> None:
    """Run API, gateway and worker in one process, with everything embedded that isn't set."""
    settings = read_settings(**({"imitate": imitate} if imitate is not None else {}))
    run(serving.serve(settings, _announce))


@app.command()
def api() -> None:
    """Run the API alone; needs DATABASE_URL."""

    def announce(started: Started) -> None:
        say(f"slipway api is up at {started.settings.api_url}")
        if started.api_key:
            say(f"  API key  {started.api_key}  (shown once; only its hash is kept)")

    run(serving.api(read_settings(), announce))


@app.command()
def worker(
    *,
    local: Annotated[bool, typer.Option("--local", help="Own this host's local platform.")] = False,
) -> None:
    """Run the worker alone; needs DATABASE_URL."""
    run(serving.worker(read_settings(), lambda _: say("slipway worker is up"), hold_local=local))


@app.command()
def gateway() -> None:
    """Run the gateway alone; needs DATABASE_URL."""
    run(serving.gateway(read_settings(), lambda s: say(f"slipway gateway is up on port {s.settings.gateway_port}")))


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""

    async def main() -> None:
        async with serving.database(read_settings()) as (url, _):
            try:
                await db.migrate(url)
            except (OperationalError, InterfaceError, OSError) as e:
                raise SetupError(f"the database can't be reached: {getattr(e, 'orig', None) or e}") from e
        say("the schema is current")

    run(main())


@app.command()
def secret_keys(
    *,
    in_use: Annotated[
        bool, typer.Option("--in-use", help="Show what needs each key of this installation instead.")
    ] = False,
) -> None:
    """Print a fresh value for SLIPWAY_SECRET_KEYS."""
    if not in_use:
        say(make_keys())
        return

    async def main() -> None:
        settings = read_settings()
        async with serving.database(settings) as (url, _), open_context(settings, url, hold_local=False) as context:
            found = await rewrap.in_use(context)
        for key_id in dict.fromkeys([*context.keyring.keys, *found]):
            needs = ", ".join(f"{count} {what}" for what, count in found.get(key_id, {}).items())
            first = "the first" if key_id == context.keyring.active else "may be taken away"
            say(f"{key_id}  {needs or first}{'' if key_id in context.keyring.keys else '  MISSING: bring it back'}")

    run(main())


keys = typer.Typer(
    no_args_is_help=True, help="API keys, made in the database itself: for the first one, or when none is left."
)
app.add_typer(keys, name="keys")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What it is for.")] = "unnamed",
    *,
    project: Annotated[str, typer.Option(help="Whose key it is.")] = DEFAULT_PROJECT,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; all if not given.")] = None,
) -> None:
    """Make an API key and print it; only its hash is kept."""

    async def main() -> None:
        settings = read_settings()
        async with serving.database(settings) as (url, _):
            await db.migrate(url)
            engine = db.create_engine(url, pool_size=1)
            try:
                async with db.create_sessions(engine).begin() as session:
                    owner = await project_named(session, project)
                    _, key = await create_key(session, owner, name, scopes=scope or [Scope.ADMIN])
            finally:
                await engine.dispose()
        say(key)

    run(main())


@app.command()
def seed() -> None:
    """Compile Go's standard library once, so that the first build need not."""
    from app.platforms import local  # noqa: PLC0415 - only this command needs it alone

    async def main() -> None:
        settings = read_settings()
        async with local.create(settings, *local_keys(load_keyring(settings))) as platform:
            await platform.seed(say)
        say("the seed is ready")

    run(main())


class DemoPlatform(StrEnum):
    """Where a demo may be."""

    LOCAL = "local"
    FLY = "fly"
    KOYEB = "koyeb"
    NORTHFLANK = "northflank"
    RAILWAY = "railway"


@app.command()
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


@app.command()
def check(
    platform: Annotated[str, typer.Argument(help="The platform's name, such as local or fly.")],
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out sleep and wake, which may take minutes.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Note a success on the real platform.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> None:
    """Prove a platform: credentials, registry, callback, a build, a service, its sleep and wake; then clean up."""
    from app import checkup  # noqa: PLC0415 - only this command needs it

    raise SystemExit(checkup.check(platform, read_settings(), quick=quick, record=record, as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    say(__version__)


def main() -> None:
    """Entry of the ``slipway`` command."""
    app()


if __name__ == "__main__":
    main()
