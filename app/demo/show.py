"""What the demo shows, step by step, as a client of the API and a caller of the service."""

import time
from pathlib import Path

import psutil
from rich.console import Console

from app.demo.client import Client, Json, archive, inline, until
from app.demo.server import SPEED, NotSeen, Server, alive

IDLE_SECONDS = 2
BUILD_SECONDS = 400.0
STEP_SECONDS = 60.0
SEED_HINT_SECONDS = 1.5
SLOW_STAGES = {"dispatching", "building: compile"}
"""Where the first build of a machine compiles the standard library."""
BUILDERS_APP = "-builders"
CHANGE = ("maxCount = 10_000", "maxCount = 20_000")
"""What makes the second version of echo-agent: old and new text of one constant."""


class Show:
    """The demo's steps, in order; each raises NotSeen when what it is about can't be seen."""

    def __init__(self, console: Console, server: Server, client: Client, platform: str) -> None:
        self._console, self._server, self._client, self._platform = console, server, client, platform
        self._built = 0
        self._names = list[str]()
        traits = {p["name"]: p["traits"] for p in client.call("GET", "/v1/platforms")["items"]}[platform]
        self._idle_seconds = max(IDLE_SECONDS, traits["min_idle_seconds"])
        self._fronted = traits["scale_to_zero"] == "manual"
        """Whether our gateway stands in front, and sleep and wake are ours; else they are the platform's own proxy's."""

    def all(self, folder: Path) -> None:
        """Go the whole way; the last line is the address of the live agent."""
        first = inline(folder / "echo-agent")
        build = self.build("demo-echo", "echo-agent, standard library only", first)
        url = str(build["url"])
        through = "our gateway" if self._fronted else f"{self._platform}'s own proxy"
        self.answer("demo-echo", url, build["artifact"]["digest"], f"a real answer through {through}")
        self._curl(url)
        if self._platform == "local":
            sent = self._client.call("POST", "/v1/sources", content=archive(folder / "vendored-agent"))
            vendored = {"kind": "upload", "digest": sent["digest"]}
            other = self.build("demo-vendored", "vendored-agent, with a third-party module", vendored)
            digest = other["artifact"]["digest"]
            self.answer("demo-vendored", str(other["url"]), digest, f"a real answer through {through}")

        self.sleep_and_wake("demo-echo", url)
        second = self.build("demo-echo", "echo-agent, second version", changed(first))
        if second["artifact"]["digest"] == build["artifact"]["digest"]:
            raise NotSeen("another image for a changed source", "the same digest")
        self.answer("demo-echo", url, second["artifact"]["digest"], "rolled out: the second version answers")
        self.roll_back("demo-echo", url, build["artifact"]["digest"])
        self._console.print(f"\n[bold]live:[/] {url}", soft_wrap=True)

    def build(self, name: str, title: str, source: Json) -> Json:
        """Build a source, promote it to a service, and return the build; its stages are shown as they come."""
        self._console.print(f"\n[bold]Build[/] {title}")
        service = {"name": name, "scale": {"min": 0, "idle_seconds": self._idle_seconds}}
        # A demo on a home that has seen one before shows its builders all the same.
        body = {"source": source, "build": {"cache": False}, "platform": self._platform, "service": service}
        begun, said, hinted = time.monotonic(), "", self._built > 0
        build = self._client.call("POST", "/v1/builds", json=body | {"labels": {"from": "slipway demo"}})
        self._names += [name] if name not in self._names else []
        while True:
            stage = _stage(build)
            if stage != said:
                self._console.print(f"  {time.monotonic() - begun:6.2f} s  {stage}")
                said = stage
            elif not hinted and stage in SLOW_STAGES and time.monotonic() - begun > SEED_HINT_SECONDS:
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
        if (builder := build["runs"][-1]["platform"]) != self._platform:
            raise NotSeen(f"a builder on {self._platform}", f"one on {builder}")
        self._built += 1
        times = {k: build["timings"].get(f"builder.{k}") for k in ("fetch", "modules", "compile", "image", "push")}
        parts = ", ".join(f"{k} {v:.2f}" for k, v in times.items() if v is not None)
        self._console.print(f"            in the builder (s): {parts}", markup=False)
        self._console.print(f"            {build['artifact']['digest']}, {build['artifact']['size_bytes']:,} bytes")
        return build

    def answer(self, name: str, url: str, digest: str, title: str) -> Json:
        """Ask the service at its address; the answer must carry the release's digest."""
        got = self._client.ask(url)
        if got.get("digest") != digest:
            raise NotSeen(f"an answer of the release with {digest}", f"digest {got.get('digest')!r}")
        service = self._client.call("GET", f"/v1/services/{name}")
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
        how = "" if self._fronted else f", {SPEED} times faster here"
        self._console.print(f"\n[bold]Sleep[/] after {self._idle_seconds} s without a request{how}: {_list(processes)}")
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
        # Where the platform lets it sleep we are not told, and the row says no more than that it serves.
        return not left and (status == "asleep" or not self._fronted), f"{status}, processes: {_list(left)}"

    def roll_back(self, name: str, url: str, digest: str) -> None:
        """Go back to the release before; its digest must be in the answer again."""
        release = self._client.call("POST", f"/v1/services/{name}/rollback")

        def live() -> tuple[bool, str]:
            now = self._client.call("GET", f"/v1/services/{name}")["live_release"]
            return now["id"] == release["id"], f"release {now['number']} live"

        until("the rollback to be live", STEP_SECONDS, live)
        self.answer(name, url, digest, "rolled back: the first version answers")

    def delete(self) -> None:
        """Delete the demo's services; an imitated platform must have nothing left of them, and nothing may run there."""
        self._console.print(f"\n[bold]Delete[/] {', '.join(self._names)}")
        for name in self._names:
            self._client.call("DELETE", f"/v1/services/{name}")
        if (stand_in := self._server.stand_ins.get(self._platform)) is None:
            return
        until(f"nothing of ours on {self._platform}", STEP_SECONDS, lambda: self._clean(stand_in))
        seen = self._client.look(stand_in)
        kept = ", ".join(seen["things"]) or "nothing"
        self._console.print(f"  no program runs on {self._platform}, and what it lists is: {kept}")
        count = sum(seen["requests"].values())
        checked = f"{seen['checked']} of them checked against its official contract" if seen["checked"] else ""
        self._console.print(f"  {self._platform} had {count} requests" + (f", {checked}" if checked else ""))
        if seen["violations"]:
            raise NotSeen("requests and answers as the contract has them", "; ".join(seen["violations"][:5]))

    def _clean(self, stand_in: str) -> tuple[bool, str]:
        seen = self._client.look(stand_in)
        # The app that all builders share stays, empty, for the next build.
        left = [thing for thing in seen["things"] if not thing.endswith(BUILDERS_APP)]
        return not left and not seen["programs"], ", ".join([*left, *(f"process {pid}" for pid in seen["programs"])])

    def _curl(self, url: str) -> None:
        host = url.removeprefix("http://")
        self._console.print(f"  try: curl -H 'Host: {host}' http://127.0.0.1:{host.rpartition(':')[2]}/")


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


def _list(processes: list[psutil.Process]) -> str:
    return ", ".join(f"process {p.pid}" for p in processes) or "none"
