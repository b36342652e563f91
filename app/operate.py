"""What the operator's commands do: ``slipway serve`` and its parts, and what is needed around them.

The command line imports this only for them, since a server is slow to load.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError

from app import __version__, db, logs, serving
from app.embedded.errors import EmbeddedError
from app.errors import Refusal
from app.ground import SetupError, harden, settle
from app.keys import DEFAULT_PROJECT, project_named
from app.keys import create as make_key
from app.leases import LeaseError
from app.main import load_keyring, local_keys, open_context
from app.platforms.base import PlatformError
from app.requests import Scope
from app.secrets import KeysError, make_keys
from app.services import rewrap
from app.serving import Started
from app.settings import Settings


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


def serve(imitate: str | None) -> None:
    """Run everything in one process; ``imitate`` wins over its setting."""
    settings = read_settings(**({"imitate": imitate} if imitate is not None else {}))
    run(serving.serve(settings, _announce))


def api() -> None:
    """Run the API alone."""

    def announce(started: Started) -> None:
        say(f"slipway api is up at {started.settings.api_url}")
        if started.api_key:
            say(f"  API key  {started.api_key}  (shown once; only its hash is kept)")

    run(serving.api(read_settings(), announce))


def worker(*, local: bool) -> None:
    """Run the worker alone; ``local``: it owns this host's local platform."""
    run(serving.worker(read_settings(), lambda _: say("slipway worker is up"), hold_local=local))


def gateway() -> None:
    """Run the gateway alone."""
    run(serving.gateway(read_settings(), lambda s: say(f"slipway gateway is up on port {s.settings.gateway_port}")))


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


def secret_keys(*, in_use: bool) -> None:
    """Print a fresh value for SLIPWAY_SECRET_KEYS, or what needs each key of this installation."""
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


def create_key(name: str, project: str | None, scopes: Sequence[str]) -> None:
    """Make an API key in the database itself and print it; exits with 2 when there is no such scope."""
    if unknown := set(scopes) - set(Scope):
        sys.stderr.write(f"slipway: --scope: there is no {min(unknown)!r}; there are {', '.join(Scope)}\n")
        raise SystemExit(2)
    wanted = [Scope(scope) for scope in scopes] or [Scope.ADMIN]

    async def main() -> None:
        settings = read_settings()
        async with serving.database(settings) as (url, _):
            await db.migrate(url)
            engine = db.create_engine(url, pool_size=1)
            try:
                async with db.create_sessions(engine).begin() as session:
                    owner = await project_named(session, project or DEFAULT_PROJECT)
                    _, key = await make_key(session, owner, name, scopes=wanted)
            finally:
                await engine.dispose()
        say(key)

    run(main())


def seed() -> None:
    """Compile Go's standard library once, so that the first build need not."""
    from app.platforms import local  # noqa: PLC0415 - only this command needs it alone

    async def told(words: str) -> None:
        say(words)

    async def main() -> None:
        settings = read_settings()
        async with local.create(settings, *local_keys(load_keyring(settings))) as platform:
            await platform.seed(told)
        say("the seed is ready")

    run(main())
