"""docker-compose.yml as processes from the installed wheel: in its order, with its environment, checks and stops."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.secrets import make_keys
from tests.shipping import files
from tests.shipping.installed import Installed
from tests.shipping.parts import Caller, Part, Stand, below, check, part
from tests.support.agents import Toolbox
from tests.support.processes import REPOSITORY, python, spawned
from tests.support.waiting import eventually_sync

VALUES = {
    "SLIPWAY_SECRET_KEYS": make_keys(),
    "SLIPWAY_API_KEY": "slp_of_the_test_and_long_enough",
    "POSTGRES_PASSWORD": "pg-password",
    "SLIPWAY_REGISTRY_PASSWORD": "registry-password",
}
THEIRS = f"postgresql://slipway:{VALUES['POSTGRES_PASSWORD']}@postgres:5432/slipway"
ECHO = {p.name: p.read_text() for p in (REPOSITORY / "examples/echo-agent").iterdir()}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    code = (
        "from tests.shipping.registry import main, Path, asyncio\nasyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))"
    )
    with spawned(*python(code, tmp_path / "outside", "slipway", VALUES["SLIPWAY_REGISTRY_PASSWORD"])) as child:
        yield child.line("http://")


@pytest.fixture
def stand(tmp_path: Path, database_url: str, registry: str, toolbox: Toolbox) -> Stand:
    # Making the seed takes longer than all the rest of the test.
    toolbox.home(tmp_path / "worker-local", seeded=True)
    return Stand(tmp_path, {THEIRS: database_url, "http://registry:5000": registry})


class Composition:
    """The services of docker-compose.yml that are ours, started in its order."""

    def __init__(self, stand: Stand, installed: Installed, stack: contextlib.ExitStack) -> None:
        self._stand, self._installed, self._stack = stand, installed, stack
        self._services = files.compose(VALUES)["services"]
        self._stages = files.dockerfile("Dockerfile")
        self.parts: dict[str, Part] = {}

    def up(self) -> None:
        for name in files.order(self._services):
            if self._services[name]["image"].startswith("slipway"):
                self._start(name, self._services[name])

    def _start(self, name: str, service: dict[str, Any]) -> None:
        for other, need in service["depends_on"].items():
            if other in self.parts and need["condition"] == "service_healthy":
                self.parts[other].until_healthy()
        target = service["build"]["target"]
        stage = files.lineage(self._stages, target)
        venv = self._installed.target(target)
        given = files.image_environment(stage) | service["environment"]
        env = self._stand.environment(given, name, venv)
        command = [*stage.words("ENTRYPOINT"), *service["command"]]
        words = service["healthcheck"].get("test", ["CMD"])[1:]
        health = [self._stand.here(word, name) for word in words]
        if health:
            assert check(health, env) != 0, f"{name} is well before it was started"
        begun = part(name, command, env, health, files.seconds(service["stop_grace_period"]))
        running = self._stack.enter_context(begun)
        if health:
            self.parts[name] = running
        else:
            assert running.child.wait(60) == 0, running.child.output


@pytest.fixture
def composition(stand: Stand, installed: Installed) -> Iterator[Composition]:
    with contextlib.ExitStack() as stack:
        yield Composition(stand, installed, stack)


@pytest.mark.timeout(400)
def test_a_split_installation_builds_deploys_sleeps_wakes_and_stops(composition: Composition, stand: Stand) -> None:
    composition.up()
    parts = composition.parts
    assert list(parts) == ["api", "worker", "gateway", "worker-local"]
    for one in parts.values():
        one.until_healthy()
    with Caller(stand, VALUES["SLIPWAY_API_KEY"]) as caller:
        _whole_way(caller, parts["worker-local"])
    for name in reversed(parts):
        parts[name].end()
        assert check(parts[name].health, parts[name].env) != 0, f"{name} is well after its end"


def _whole_way(caller: Caller, owner: Part) -> None:
    service = {"name": "echo", "scale": {"min": 0, "idle_seconds": 2}}
    body = {"source": {"kind": "files", "files": ECHO}, "service": service}
    build = caller.built(caller.api("POST", "/v1/builds", status=202, json=body))
    first = caller.ask("echo")
    assert first["digest"] == build["artifact"]["digest"]
    assert below(owner, first["hostname"]), "the service is not a child of worker --local"

    # Idleness is seen by the gateway, and the process ended by worker --local: by way of the queue.
    caller.until("echo", "asleep")
    eventually_sync(lambda: not below(owner, first["hostname"]))
    second = caller.ask("echo")
    assert second["instance"] != first["instance"]

    assert caller.api("GET", "/v1/services/echo/logs", status=409)["reason"] == "logs_elsewhere"
    caller.api("POST", "/v1/services/echo/sleep")
    caller.until("echo", "asleep")
    woken = caller.api("POST", "/v1/services/echo/wake")
    assert woken["status"] == "running"
    assert caller.ask("echo")["instance"] not in {first["instance"], second["instance"]}

    caller.api("DELETE", "/v1/services/echo", status=202)
    eventually_sync(lambda: not below(owner, "/app/agent") and caller.api("GET", "/v1/services")["items"] == [], 30)


def test_parts_refuse_to_start_before_the_migration(
    installed: Installed, empty_database_url: str, tmp_path: Path
) -> None:
    stand = Stand(tmp_path, {THEIRS: empty_database_url})
    services, stages = files.compose(VALUES)["services"], files.dockerfile("Dockerfile")
    given = files.image_environment(files.lineage(stages, "control")) | services["worker"]["environment"]
    env = stand.environment(given, "worker", installed.control)
    with part("worker", ["slipway", "worker"], env, [], 10) as worker:
        assert worker.child.wait(60) == 1
        assert worker.child.output[-1].startswith("slipway: the database's schema is not current")
