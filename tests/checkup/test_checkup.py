"""``slipway check`` from outside: against a real ``slipway serve``, on this machine and on imitations of the clouds."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.checkup import note
from app.checkup.client import Client
from app.checkup.report import Report, Step
from app.checkup.steps import Checkup, imitated
from app.checkup.trial import Patience
from app.platforms import proven
from app.settings import Settings
from tests.e2e.place import KEY, Place
from tests.images.support import USER, registry
from tests.platforms import fly_support, koyeb_support, northflank_support, railway_support
from tests.platforms.cloud import BUILDER_IMAGE
from tests.support.agents import Toolbox, make_toolbox
from tests.support.processes import REPOSITORY, spawned
from tests.support.waiting import eventually

SUPPORT: Mapping[str, Any] = {
    "fly": fly_support,
    "koyeb": koyeb_support,
    "northflank": northflank_support,
    "railway": railway_support,
}
PATIENCE = Patience(launch=60, callback=60, build=90, service=60, sleep=60, wake=30, gone=60)
COMMAND = (sys.executable, "-P", "-m", "app.cli", "check")
WAY = ["configured", "credentials", "registry", "builder", "callback", "push", "service", "sleep", "wake", "clean-up"]


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    return make_toolbox()


@pytest.fixture
def place(toolbox: Toolbox, tmp_path: Path) -> Iterator[Place]:
    """A Slipway that is not started yet."""
    one = Place(toolbox.home(tmp_path / "home", seeded=True))
    yield one
    one.close()


class Ground:
    """Imitations, a running Slipway that knows them, and the settings with which both are checked."""

    def __init__(self, place: Place, stand_ins: Mapping[str, Any], settings: Settings) -> None:
        self.place, self.stand_ins, self.settings = place, stand_ins, settings
        self.tasks: set[asyncio.Task[None]] = set()

    async def check(self, name: str, settings: Settings | None = None, **options: Any) -> Report:
        """Check a platform as the command does, with waits made short; an imitation's idle services are put to sleep."""

        def say(step: Step) -> None:
            if step.name == "service" and step.ok and hasattr(self.stand_ins.get(name), "idle_pass"):
                self.tasks.add(asyncio.create_task(self._doze(name)))

        client = Client(f"http://127.0.0.1:{self.place.port}", KEY)
        opened = SUPPORT[name].opened if name in SUPPORT else None
        options = {"patience": PATIENCE, "say": say, "opened": opened, **options}
        try:
            return await Checkup(name, settings or self.settings, client, **options).run()
        finally:
            await client.aclose()

    async def _doze(self, name: str) -> None:
        await eventually(self.stand_ins[name].idle_pass, 30)


@contextlib.asynccontextmanager
async def ground(place: Place, toolbox: Toolbox, *names: str) -> AsyncIterator[Ground]:
    """Start imitations of these platforms, and a Slipway on them."""
    url = f"http://127.0.0.1:{place.port}"
    path = os.pathsep.join([str(REPOSITORY), *(p for p in sys.path if p.endswith("site-packages"))])
    env = {"SLIPWAY_GO": str(toolbox.go), "SLIPWAY_GOCACHE": str(toolbox.gocache), "PYTHONPATH": path}
    options = {"builder": (sys.executable, "-P", "-m", "builder"), "builder_env": env}
    async with contextlib.AsyncExitStack() as stack:
        made: dict[str, Any] = {}
        chosen: dict[str, Any] = {}
        for name in names:
            folder = place.home.parent / name
            made[name] = await stack.enter_async_context(SUPPORT[name].imitation(folder, **options))
            chosen[name] = getattr(SUPPORT[name].settings(made[name]), name)
        if "northflank" in made:
            made["northflank"].registries[northflank_support.REGISTRY] = url
        values: dict[str, Any] = {
            "home": place.home,
            "port": place.port,
            "gateway_port": place.gateway_port,
            "public_url": url,
            **chosen,
        }
        settings = Settings(builder_image=BUILDER_IMAGE, **values)
        for name, own in chosen.items():
            for field, value in own.model_dump(exclude_none=True).items():
                text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
                text = ",".join(text) if isinstance(text, tuple) else text
                place.set[f"SLIPWAY_{name}__{field}".upper()] = str(text)
        place.set |= {"SLIPWAY_PUBLIC_URL": url, "SLIPWAY_BUILDER_IMAGE": BUILDER_IMAGE, "SLIPWAY_DRAIN_SECONDS": "0.2"}
        await asyncio.to_thread(place.start)
        one = Ground(place, made, settings)
        try:
            yield one
        finally:
            for task in one.tasks:
                task.cancel()
            await asyncio.gather(*one.tasks, return_exceptions=True)
            await asyncio.to_thread(place.stop)


@pytest.mark.parametrize(
    "names",
    [("local", "fly"), pytest.param(("koyeb", "northflank", "railway"), marks=pytest.mark.volume)],
    ids=" ".join,
)
async def test_every_platform_goes_the_whole_way(place: Place, toolbox: Toolbox, names: tuple[str, ...]) -> None:
    async with ground(place, toolbox, *(name for name in names if name in SUPPORT)) as on:
        reports = await asyncio.gather(*(on.check(name) for name in names))
        for name, report in zip(names, reports, strict=True):
            assert [s.name for s in report.steps if s.ok] == WAY, report
            assert (report.code, report.imitated) == (0, name != "local")
            assert report.steps[8].seen.startswith("a request woke it; a new instance")


async def test_each_failure_has_its_own_verdict_and_leaves_nothing(
    place: Place, toolbox: Toolbox, tmp_path: Path
) -> None:
    async with ground(place, toolbox, "fly") as on:
        fly = on.stand_ins["fly"]

        fly.misbehave("unauthorized", "create machine")
        report = await on.check("fly")
        failed = report.steps[-2]
        assert (failed.name, failed.owner, report.code) == ("builder", "operator", 1)
        assert failed.seen.startswith("platform_misconfigured: fly create machine: 401")
        assert failed.advice == "The token may list but not launch: give it the right to create and delete machines."
        assert report.steps[-1].name == "clean-up"
        assert report.steps[-1].ok

        fly.host.builder = ("/usr/bin/env", "SLIPWAY_URL=http://127.0.0.1:9", *fly.host.builder)
        report = await on.check("fly", patience=dataclasses.replace(PATIENCE, callback=1.0))
        failed = report.steps[-2]
        assert (failed.name, failed.owner, report.code) == ("callback", "operator", 1)
        assert f"did not reach {on.settings.public_url}; from here it answers 200" in failed.seen
        assert "SLIPWAY_PUBLIC_URL" in str(failed.advice)
        assert (report.steps[-1].ok, fly.machines) == (True, [])

        async with registry(tmp_path / "outside") as outside:
            wrong: dict[str, Any] = {
                "registry": outside.url,
                "registry_username": USER[0],
                "registry_password": SecretStr("guessed"),
            }
            report = await on.check("fly", on.settings.model_copy(update=wrong))
        failed = report.steps[-1]
        assert (failed.name, failed.owner, report.code) == ("registry", "operator", 1)
        assert "SLIPWAY_REGISTRY_PASSWORD" in str(failed.advice)

        # Canceled while the build is being sent, it still learns what to remove.
        def cancel(step: Step) -> None:
            if step.name == "registry" and (me := asyncio.current_task()):
                me.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(on.check("fly", say=cancel))
        client = Client(f"http://127.0.0.1:{place.port}", KEY)
        newest = (await client.call("GET", "/v1/builds"))["items"][0]
        await client.aclose()
        assert (newest["status"], fly.machines) == ("canceled", [])

        # As a program: interrupted while its builder runs.
        with spawned(*COMMAND, "fly", env=place._environment({})) as child:
            await asyncio.to_thread(child.line, "ok", 60)
            while "launched" not in await asyncio.to_thread(child.line, "ok", 60):
                pass
            child.signal(signal.SIGINT)
            assert await asyncio.to_thread(child.wait, 60) == 130
            said = "".join(child.output)
        assert "clean-up     builder and service are gone" in said, said
        assert fly.machines == []

        with spawned(*COMMAND, "koyeb", "--json", env=place._environment({})) as child:
            assert await asyncio.to_thread(child.wait, 60) == 2
            report_json = json.loads("".join(child.output))
        assert (report_json["ok"], [s["name"] for s in report_json["steps"]]) == (False, ["configured"])
        assert report_json["steps"][0]["seen"] == "not set: SLIPWAY_KOYEB__ENABLED, SLIPWAY_KOYEB__TOKEN"


def test_only_the_real_platform_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_FLY__TOKEN", "x")
    assert not imitated(Settings(), "fly")
    monkeypatch.setenv("SLIPWAY_FLY__API_URL", "http://127.0.0.1:1")
    assert imitated(Settings(), "fly")
    assert not imitated(Settings(), "local")
    report = Report(platform="fly", imitated=False, steps=(), code=0)
    file = tmp_path / "proven.json"
    file.write_text("{}")
    for kept in (dataclasses.replace(report, imitated=True), dataclasses.replace(report, code=1)):
        note(kept, quick=False, file=file)
    note(report, quick=True, file=file)
    assert proven.standing("fly", file) == "imitated"
    note(report, quick=False, file=file)
    assert proven.standing("fly", file) == f"live {datetime.now(UTC).date()}"
