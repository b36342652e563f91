"""``slipway check <platform>``: whether a platform works from here, shown by doing it.

It is a client of the running Slipway (it starts one where none runs): it sends a small agent to be built on the platform and to
run there, looks at each step from outside, waits for the service's sleep, wakes it by a request, and removes everything. With
the platform's own credentials it also looks whether what is said to be asleep or gone is.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.checkup.client import Client
from app.checkup.report import NOT_CONFIGURED, Report, Step
from app.checkup.steps import Checkup
from app.demo.server import NotSeen, running
from app.platforms import catalog, proven
from app.settings import Settings

INTERRUPTED = 130


def check(name: str, settings: Settings, *, quick: bool, record: bool, as_json: bool) -> int:
    """Check a platform and return the exit code: 0, 2 not configured, 1 the operator's move, 3 the platform's, 4 ours.

    ``record``: note a success on the real platform, all steps taken, in the file that lists and documents are made from.
    """
    known = catalog.entries(settings)
    if name not in known:
        sys.stderr.write(f"slipway: there is no platform {name}; there are {', '.join(known)}\n")
        return NOT_CONFIGURED
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _server(settings) as (url, key):
            report = asyncio.run(_check(name, settings, url, key, quick=quick, silent=as_json))
    except NotSeen as e:
        sys.stderr.write(f"slipway: {e}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
    if record:
        note(report, quick=quick)
    return report.code


def note(report: Report, *, quick: bool, file: Path = proven.FILE) -> None:
    """Record a success; one on an imitation, or without sleep and wake, is none."""
    if report.code != 0:
        return
    if report.imitated or quick:
        why = "this was an imitation" if report.imitated else "sleep and wake were left out"
        sys.stderr.write(f"slipway: not recorded: {why}\n")
        return
    proven.record(report.platform, file)


async def _check(name: str, settings: Settings, url: str, key: str, *, quick: bool, silent: bool) -> Report:
    def say(step: Step) -> None:
        sys.stdout.write("\n".join(step.lines()) + "\n")
        sys.stdout.flush()

    client = Client(url, key)
    try:
        return await Checkup(name, settings, client, quick=quick, say=(lambda _: None) if silent else say).run()
    finally:
        await client.aclose()


@contextlib.contextmanager
def _server(settings: Settings) -> Iterator[tuple[str, str]]:
    """Give address and key of the Slipway that runs at ``settings.api_url``, or of one that runs for the check's time."""
    try:
        httpx.get(f"{settings.api_url}/healthz", timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-check-"))
            server = stack.enter_context(running(Path(folder) / "serve.log", settings.home, env=os.environ))
            yield server.url, server.api_key
        return
    if settings.api_key is None:
        raise NotSeen(f"SLIPWAY_API_KEY to be set, since a Slipway runs at {settings.api_url}", "none")
    yield settings.api_url, settings.api_key.get_secret_value()
