"""kill -9 of ``serve`` at every named point: the next start goes on where it was, and nothing is left over.

One home per worker: the server that has recovered from one kill is told the next point by the fault file, so that each
case costs one start. A case drives what reaches its point and says what must be true once the next server is up.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from app import faults
from app.lifecycle import BuildStatus, is_terminal
from tests.builder.servers import listening
from tests.e2e.modules import Door, door
from tests.e2e.place import Json, Place, eventually, place
from tests.e2e.programs import program, tiny
from tests.e2e.refusing import refusing
from tests.support.agents import Toolbox

CRASHING = program('package main\n\nimport "syscall"\n\nfunc main() { syscall.Exit(3) }\n')


STEADY = "steady"


class Kills:
    """One home with a service that cases share as long as none deletes it; a case that builds has one of its own."""

    def __init__(self, it: Place, modules: Door) -> None:
        self.place, self.modules, self._number = it, modules, 0
        self.name, self.digest = STEADY, ""

    def begin(self) -> None:
        self._number += 1
        self.name, self.digest = f"svc-{self._number}", ""
        self.modules.opened.clear()
        self.modules.modules.asked.clear()

    def live(self) -> Json:
        """Turn to the shared service, built when it isn't there, awake; returns its live release."""
        self.name = STEADY
        if STEADY not in self.names():
            self.place.build(tiny("steady"), STEADY)
        self.place.ask(STEADY)
        release: Json = self.place.service(STEADY)["live_release"]
        self.digest = release["digest"]
        return release

    def names(self) -> set[str]:
        return {s["name"] for s in self.place.api("GET", "/v1/services")["items"]}

    def waiting(self) -> str:
        """Send a build whose builder waits for a module until the door is opened; returns its id."""
        build = self.place.send(self.modules.needing(tiny(), "example.test/slow"), self.name)
        eventually(lambda: self.modules.modules.asked != [])
        return build

    def arm(self, point: str) -> None:
        self.place.fault.write_text(point)

    def call(self, method: str, path: str, **options: Any) -> Json:
        """Call the API although the answer may never come: the server dies of it, before or after its commit."""
        with contextlib.suppress(httpx.TransportError):
            return self.place.api(method, path, **options)
        return {}

    def knock(self) -> None:
        """Send a request to the service, whose answer may never come."""
        with contextlib.suppress(httpx.TransportError):
            self.place.http.get(
                f"http://127.0.0.1:{self.place.gateway_port}/", headers={"Host": self.place.host(self.name)}
            )

    def restart(self) -> None:
        """Wait for the death, and start again without the fault."""
        self.place.died()
        self.place.fault.unlink()
        self.place.start()

    # ------------------------------------------------------------------------------------------------ what must be true

    def builds(self) -> list[Json]:
        return list(self.place.api("GET", "/v1/builds", params={"service": self.name})["items"])

    def build_ended(self, *, runs: int = 1) -> Json:
        """The one build of this case ends by itself, once, in so many runs."""
        (listed,) = self.builds()
        build = self.place.ended(listed["id"])
        assert len(build["runs"]) == runs, build["tried"]
        kinds = self.place.events(build["id"])
        assert [k for k in kinds if k.startswith("build.") and is_terminal(BuildStatus(k[6:]))] == ["build.succeeded"]
        self.digest = build["artifact"]["digest"]
        return build

    def one_live(self) -> None:
        """The service has one live release, which answers; nothing runs here but what the rows say."""
        releases = self.place.api("GET", f"/v1/services/{self.name}/releases")["items"]
        assert sum(r["status"] == "live" for r in releases) == 1, releases
        assert {r["status"] for r in releases} <= {"live", "superseded", "failed"}
        answer = self.place.ask(self.name)
        assert answer["digest"] == self.digest
        assert answer["instance"] == self.place.service(self.name)["instance_id"]
        self.settled()

    def settled(self) -> None:
        self.place.settled(*self.names())

    def gone(self) -> None:
        """The service is deleted, and nothing that is left is without one."""
        local = self.place.home / "local"

        def forgotten() -> bool:
            self.place.api("GET", f"/v1/services/{self.name}", status=404)
            assert self.names() or not [*(local / "releases").glob("*.json"), *(local / "images").glob("[!.]*")]
            return True

        eventually(forgotten)
        self.settled()

    def end(self) -> None:
        """Leave a home without this case's own service."""
        if self.name != STEADY and self.name in self.names():
            self.place.api("DELETE", f"/v1/services/{self.name}")
            self.gone()


@pytest.fixture(scope="module")
def home(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    folder = tmp_path_factory.mktemp("kill") / "home"
    with door() as modules, refusing() as elsewhere:
        settings = {
            "SLIPWAY_DRAIN_SECONDS": "0.1",
            "GOPROXY": modules.url,
            "SLIPWAY_WEBHOOK_ALLOW_HOSTS": "127.0.0.1",
        } | elsewhere
        with place(toolbox.home(folder, seeded=True), **settings) as it:
            it.set["SLIPWAY_PUBLIC_URL"] = f"http://127.0.0.1:{it.port}"
            it.start()
            yield Kills(it, modules)


@pytest.fixture
def kills(home: Kills) -> Iterator[Kills]:
    home.begin()
    if home.place.child is None:  # the case before this one failed in between
        home.place.fault.unlink(missing_ok=True)
        home.place.start()
    yield home
    if home.place.child is not None:
        home.end()


# ---------------------------------------------------------------------------------------------------- what reaches a point


def build(kills: Kills, point: str) -> None:
    """A build with a service, killed on its way."""
    kills.arm(point)
    order = {"source": {"kind": "files", "files": tiny()}, "build": {"cache": False}, "service": {"name": kills.name}}
    kills.call("POST", "/v1/builds", json=order)
    kills.restart()
    kills.build_ended()
    kills.one_live()


def batch(kills: Kills, point: str) -> None:
    """Two builds are sent at once; sent again under the same key they are the same two."""
    order = {"source": {"kind": "files", "files": tiny()}}
    body = {"builds": [order, order | {"build": {"cache": False}}]}
    key = {"Idempotency-Key": f"batch-{kills.name}"}
    kills.arm(point)
    kills.call("POST", "/v1/batches", json=body, headers=key)
    kills.restart()
    sent = kills.place.api("POST", "/v1/batches", json=body, headers=key)
    for item in sent["items"]:
        kills.place.ended(item["build_id"])
    (listed,) = kills.place.api("GET", "/v1/batches")["items"]
    assert (listed["id"], listed["builds"]) == (sent["id"], {"succeeded": 2})
    assert listed["ended_at"] is not None
    kills.settled()


def reuse(kills: Kills, point: str) -> None:
    """A build takes the artifact of the live release, and no builder."""
    before = kills.live()
    kills.arm(point)
    order = {"source": {"kind": "files", "files": tiny("steady")}, "service": {"name": kills.name}}
    kills.call("POST", "/v1/builds", json=order)
    kills.restart()
    newest = kills.builds()[0]["id"]
    build = kills.place.ended(newest)
    assert (build["runs"], build["artifact"]["reused"]) == ([], True)
    assert build["artifact"]["id"] == before["artifact_id"]
    assert kills.place.events(newest).count("build.reused") == 1
    kills.one_live()


def again(kills: Kills, point: str) -> None:
    """Another release of a live service, out of the same artifact; the one before it is retired."""
    before = kills.live()
    kills.arm(point)
    kills.call("POST", f"/v1/services/{kills.name}/releases", json={"artifact_id": before["artifact_id"]})
    kills.restart()

    def next_is_live() -> bool:
        return bool(kills.place.service(kills.name)["live_release"]["number"] > before["number"])

    eventually(next_is_live)
    kills.one_live()


def failing(kills: Kills, point: str) -> None:
    """Another version crashes at its start: the live one goes on serving."""
    before = kills.live()
    kills.arm(point)
    bad = kills.place.send(CRASHING, kills.name)
    kills.restart()
    ended = kills.place.ended(bad, "failed")
    assert ended["reason"] == "crashed_at_start"
    assert kills.place.service(kills.name)["live_release"]["id"] == before["id"]
    kills.one_live()


def migrate(kills: Kills, point: str) -> None:
    """A platform that makes nothing is asked to have the service: it goes on here, and nothing is owed there."""
    before = kills.live()
    kills.arm(point)
    kills.call("POST", f"/v1/services/{kills.name}/migrate", json={"platform": "koyeb"})
    kills.restart()

    def returned() -> bool:
        releases = kills.place.api("GET", f"/v1/services/{kills.name}/releases")["items"]
        (newest,) = [r for r in releases if r["number"] == max(one["number"] for one in releases)]
        assert (newest["platform"], newest["status"], newest["reason"]) == ("koyeb", "failed", "platform_rejected")
        return bool(newest["retired_at"])

    eventually(returned)
    assert kills.place.service(kills.name)["live_release"]["id"] == before["id"]
    kills.one_live()


def sleep(kills: Kills, point: str) -> None:
    kills.live()
    kills.arm(point)
    kills.call("POST", f"/v1/services/{kills.name}/sleep")
    kills.restart()
    kills.place.until(kills.name, "asleep")
    kills.settled()
    kills.one_live()


def wake(kills: Kills, point: str) -> None:
    kills.live()
    kills.place.api("POST", f"/v1/services/{kills.name}/sleep")
    kills.arm(point)
    kills.knock()
    kills.restart()
    kills.one_live()


def delete(kills: Kills, point: str) -> None:
    kills.live()
    kills.arm(point)
    kills.call("DELETE", f"/v1/services/{kills.name}")
    kills.restart()
    kills.gone()


def cancel(kills: Kills, point: str) -> None:
    """A build is canceled while its builder is at work."""
    build = kills.waiting()
    kills.arm(point)
    kills.call("POST", f"/v1/builds/{build}/cancel")
    kills.restart()
    kills.place.ended(build, "canceled")
    assert [k for k in kills.place.events(build) if k.startswith("build.")][-1] == "build.canceled"
    kills.settled()


def tell(kills: Kills, point: str) -> None:
    """An endpoint is told that a service goes to sleep and is asleep: both, in this order, whatever was cut short."""
    kills.live()
    with taking() as (url, kinds):
        hook = kills.place.api(
            "POST", "/v1/webhooks", json={"url": url, "events": ["service.sleeping", "service.asleep"]}
        )
        path = f"/v1/webhooks/{hook['id']}"
        kills.arm(point)
        kills.call("POST", f"/v1/services/{kills.name}/sleep")
        kills.restart()

        def delivered() -> bool:
            items = kills.place.api("GET", f"{path}/deliveries")["items"]
            assert [(d["kind"], d["status"]) for d in items] == [
                ("service.asleep", "delivered"), ("service.sleeping", "delivered"),
            ]  # fmt: skip
            return True

        try:
            eventually(delivered)
        finally:
            kills.place.api("DELETE", path)
        assert list(dict.fromkeys(kinds)) == ["service.sleeping", "service.asleep"]
        assert len(kinds) == (3 if point == "webhook.sent" else 2), kinds


@contextlib.contextmanager
def taking() -> Iterator[tuple[str, list[str]]]:
    """Take webhooks for the length of a block; gives the URL and the kinds that came."""
    kinds: list[str] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kinds.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["type"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Taker) as port:
        yield f"http://127.0.0.1:{port}/", kinds


def check(kills: Kills, point: str) -> None:
    """Server and builder die together: the next server sees that the builder is gone, and dies too."""
    kills.waiting()
    (builder,) = kills.place.instances() - {kills.place.service(name)["instance_id"] for name in kills.names()}
    kills.place.kill()
    kills.place.kill_instance(builder)
    kills.modules.opened.set()
    kills.arm(point)
    kills.place.start(up=False)
    kills.restart()
    kills.build_ended(runs=2)
    kills.one_live()


@dataclass(frozen=True)
class Case:
    point: str
    drive: Callable[[Kills, str], None]

    def __str__(self) -> str:
        return f"{self.point}-{self.drive.__name__}"


DRIVES: dict[str, tuple[Callable[[Kills, str], None], ...]] = {
    "submit": (build,),
    "batch": (batch,),
    "dispatch": (build,),
    "reuse": (reuse,),
    "claim": (build,),
    "report": (build,),
    "cleanup": (build,),
    "cancel": (cancel,),
    "check": (check,),
    "promote": (build,),
    "release": (again,),
    "retire": (again,),
    "leave": (migrate,),
    "wake": (wake,),
    "sleep": (sleep,),
    "delete": (delete,),
    "webhook": (tell,),
    "local": (build, wake),
}
"""What reaches the points of a verb."""
OTHERS: dict[str, tuple[Callable[[Kills, str], None], ...]] = {"promote.failed": (failing,)}
"""What reaches a point that the rest of its verb does not."""


def cases() -> list[Case]:
    return [
        Case(point, drive)
        for point in sorted(faults.POINTS)
        for drive in OTHERS.get(point) or DRIVES.get(point.partition(".")[0], ())
    ]


def test_every_fault_point_has_a_case() -> None:
    assert {case.point for case in cases()} == faults.POINTS


def weighed(case: Case) -> Any:
    """Leave a builder's start to tests/local/test_kill.py, which kills its owner at the same points in less time."""
    twice = case.drive is build and case.point.startswith("local.")
    return pytest.param(case, id=str(case), marks=[pytest.mark.volume] if twice else [])


@pytest.mark.parametrize("case", [weighed(case) for case in cases()])
def test_killed(case: Case, kills: Kills) -> None:
    case.drive(kills, case.point)
