"""``slipway demo``: the whole way on this machine, shown from outside.

It starts a ``slipway serve`` of its own and is then a client like any other: builds two agents, asks them, lets one sleep
and wakes it, rolls a second version out and back. It succeeds only if all of that was seen. With ``--platform fly`` all of
it is on a stand-in of that platform, from its builder to its proxy, and at the end nothing may be left there.
"""

import signal
import sys
from pathlib import Path

from rich.console import Console

from app.demo.client import Client
from app.demo.server import NotSeen, home, running, tail
from app.demo.show import Show


def examples() -> Path:
    """Return the folder of the example agents: inside the installed package, or beside it in a source tree."""
    packaged = Path(__file__).parents[1] / "_examples"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "examples"


def demo(platform: str = "local", *, keep: bool = False, folder: Path | None = None) -> int:
    """Run the demo and return the exit code: 0 when everything was seen, else 1. ``keep``: stay up until interrupted.

    ``platform`` is imitated unless it is ``local``. ``folder`` holds the agents, ``echo-agent`` and ``vendored-agent``.
    """
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with home() as place:
        place.mkdir(parents=True, exist_ok=True)
        log = place / "demo.log"
        imitate = () if platform == "local" else (platform,)
        try:
            with (
                console.status("starting PostgreSQL, API, gateway and worker"),
                running(log, place, imitate) as server,
            ):
                console.print(f"[bold]slipway serve[/] is up at {server.url}, its state in {place}")
                for name, stand_in in server.stand_ins.items():
                    console.print(f"{name} is imitated at {stand_in}")
                with Client(server) as client:
                    show = Show(console, server, client, platform)
                    show.all(folder or examples())
                    if keep:
                        _hold(console)
                    show.delete()
        except NotSeen as e:
            console.print("\n[bold red]The demo failed.[/]")
            console.print(f"  expected: {e.expected}\n  seen:     {e.seen}", markup=False)
            console.print(f"\nThe last lines of {log}:\n{tail(log)}", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130
    return 0


def _hold(console: Console) -> None:
    console.print("It stays up until you press Ctrl-C.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")
