"""``slipway demo``: the whole way on this machine, shown from outside.

It starts a ``slipway serve`` of its own and is then a client like any other: builds two agents, asks them, lets one sleep
and wakes it, rolls a second version out and back. It succeeds only if all of that was seen.
"""

import signal
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console

from app.demo.client import Client, Json, archive, inline, until
from app.demo.server import NotSeen, Server, alive, home, running, tail

IDLE_SECONDS = 2
BUILD_SECONDS = 400.0
STEP_SECONDS = 60.0
SEED_HINT_SECONDS = 1.5
CHANGE = ("maxCount = 10_000", "maxCount = 20_000")
"""What makes the second version of echo-agent: old and new text of one constant."""


def examples() -> Path:
    """Return the folder of the example agents: inside the installed package, or beside it in a source tree."""
    packaged = Path(__file__).parents[1] / "_examples"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "examples"


def demo(*, keep: bool = False, folder: Path | None = None) -> int:
    """Run the demo and return the exit code: 0 when everything was seen, else 1. ``keep``: stay up until interrupted.

    ``folder`` holds the agents, ``echo-agent`` and ``vendored-agent``.
    """
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with home() as (place, own):
        place.mkdir(parents=True, exist_ok=True)
        log = place / "demo.log"
        try:
            with console.status("starting PostgreSQL, API, gateway and worker"), running(log, place) as server:
                console.print(f"[bold]slipway serve[/] is up at {server.url}, its state in {place}")
                with Client(server) as client:
                    show = Show(console, server, client)
                    show.all(folder or examples())
                    if keep:
                        _hold(console)
                    if own:
                        show.tidy()
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


class Show:
    """The demo's steps, in order; each raises NotSeen when what it is about can't be seen."""

    def __init__(self, console: Console, server: Server, client: Client) -> None:
        self._console, self._server, self._client = console, server, client
        self._built = 0
        self._names = list[str]()

    def all(self, folder: Path) -> None:
        """Go the whole way; the last line is the address of the live agent."""
        first = inline(folder / "echo-agent")
        build = self.build("demo-echo", "echo-agent, standard library only", first)
        url = str(build["url"])
        self.answer(url, build["artifact"]["digest"], "a real answer through the gateway")
        self._curl(url)

        sent = self._client.call("POST", "/v1/sources", content=archive(folder / "vendored-agent"))
        vendored = {"kind": "upload", "digest": sent["digest"]}
        other = self.build("demo-vendored", "vendored-agent, with a third-party module", vendored)
        self.answer(str(other["url"]), other["artifact"]["digest"], "a real answer through the gateway")

        self.sleep_and_wake("demo-echo", url)
        second = self.build("demo-echo", "echo-agent, second version", changed(first))
        if second["artifact"]["digest"] == build["artifact"]["digest"]:
            raise NotSeen("another image for a changed source", "the same digest")
        self.answer(url, second["artifact"]["digest"], "rolled out: the second version answers")
        self.roll_back("demo-echo", url, build["artifact"]["digest"])
        self._console.print(f"\n[bold]live:[/] {url}", soft_wrap=True)

    def build(self, name: str, title: str, source: Json) -> Json:
        """Build a source, promote it to a service, and return the build; its stages are shown as they come."""
        self._console.print(f"\n[bold]Build[/] {title}")
        body = {"source": source, "service": {"name": name, "scale": {"min": 0, "idle_seconds": IDLE_SECONDS}}}
        begun, said, hinted = time.monotonic(), "", self._built > 0
        build = self._client.call("POST", "/v1/builds", json=body | {"labels": {"from": "slipway demo"}})
        self._names += [name] if name not in self._names else []
        while True:
            stage = _stage(build)
            if stage != said:
                self._console.print(f"  {time.monotonic() - begun:6.2f} s  {stage}")
                said = stage
            elif not hinted and stage == "dispatching" and time.monotonic() - begun > SEED_HINT_SECONDS:
                self._console.print("            first build on this machine: compiling Go's standard library once")
                hinted = True
            if build["status"] in {"succeeded", "failed", "canceled"}:
                break
            if time.monotonic() - begun > BUILD_SECONDS:
                raise NotSeen(f"the build to end within {BUILD_SECONDS:.0f} s", f"it is {stage}")
            time.sleep(0.02)
            build = self._client.call("GET", f"/v1/builds/{build['id']}")
        if build["status"] != "succeeded":
            raise NotSeen("the build to succeed", f"{build['status']}: {build['reason']}: {build['message']}")
        self._built += 1
        times = {k: build["timings"].get(f"builder.{k}") for k in ("fetch", "modules", "compile", "image", "push")}
        parts = ", ".join(f"{k} {v:.2f}" for k, v in times.items() if v is not None)
        self._console.print(f"            in the builder (s): {parts}", markup=False)
        self._console.print(f"            {build['artifact']['digest']}, {build['artifact']['size_bytes']:,} bytes")
        return build

    def answer(self, url: str, digest: str, title: str) -> Json:
        """Ask the service through the gateway; the answer must carry the release's digest."""
        got = self._client.ask(url)
        if got.get("digest") != digest:
            raise NotSeen(f"an answer of the release with {digest}", f"digest {got.get('digest')!r}")
        service = self._client.call("GET", f"/v1/services/{_name(url)}")
        self._console.print(f"[bold]{title}[/] (service {service['status']})\n  {url}")
        shown = {k: v for k, v in got.items() if k in {"instance", "release", "digest", "ulid"}}
        self._console.print(f"  {shown}", markup=False)
        return got

    def sleep_and_wake(self, name: str, url: str) -> None:
        """Let the service sleep until its process is gone, and wake it by a request; another instance must answer."""
        before = self._client.ask(url)
        processes = self._server.instance(before)
        if not processes:
            raise NotSeen("the instance among the processes of this machine", "no process of it")
        self._console.print(f"\n[bold]Sleep[/] after {IDLE_SECONDS} s without a request: {_list(processes)}")
        begun = time.monotonic()
        until(f"{name} to be asleep, its process gone", STEP_SECONDS, lambda: self._asleep(name, processes))
        self._console.print(f"  asleep after {time.monotonic() - begun:.1f} s, no process left")
        begun = time.monotonic()
        after = self._client.ask(url)
        took = (time.monotonic() - begun) * 1000
        if after["instance"] == before["instance"]:
            raise NotSeen("a new instance after the wake", f"the old one, {before['instance']}")
        if not self._server.instance(after):
            raise NotSeen("the new instance among the processes of this machine", "no process of it")
        self._console.print(f"[bold]Wake[/] by a request: {took:.0f} ms to the answer of instance {after['instance']}")

    def _asleep(self, name: str, processes: list[psutil.Process]) -> tuple[bool, str]:
        status = self._client.call("GET", f"/v1/services/{name}")["status"]
        left = [p for p in processes if alive(p)]
        return status == "asleep" and not left, f"{status}, processes: {_list(left)}"

    def roll_back(self, name: str, url: str, digest: str) -> None:
        """Go back to the release before; its digest must be in the answer again."""
        release = self._client.call("POST", f"/v1/services/{name}/rollback")

        def live() -> tuple[bool, str]:
            now = self._client.call("GET", f"/v1/services/{name}")["live_release"]
            return now["id"] == release["id"], f"release {now['number']} live"

        until("the rollback to be live", STEP_SECONDS, live)
        self.answer(url, digest, "rolled back: the first version answers")

    def tidy(self) -> None:
        """Remove the demo's services from a home that is somebody's own."""
        for name in self._names:
            self._client.call("DELETE", f"/v1/services/{name}")

    def _curl(self, url: str) -> None:
        host = url.removeprefix("http://")
        self._console.print(f"  try: curl -H 'Host: {host}' http://127.0.0.1:{self._server.gateway_port}/")


def changed(source: Json) -> Json:
    """Return the source with one constant changed."""
    old, new = CHANGE
    if old not in source["files"]["main.go"]:
        raise NotSeen(f"{old!r} in the example's main.go", "another text")
    return source | {"files": source["files"] | {"main.go": source["files"]["main.go"].replace(old, new)}}


def _stage(build: Json) -> str:
    run = build["runs"][-1] if build["runs"] else None
    inner = run["stage"] if run and build["status"] == "building" else None
    return f"{build['status']}: {inner}" if inner else str(build["status"])


def _name(url: str) -> str:
    return url.removeprefix("http://").partition(".")[0]


def _list(processes: list[psutil.Process]) -> str:
    return ", ".join(f"process {p.pid}" for p in processes) or "none"
