"""Following: what is told comes once and in order, whatever happens to the connection, and Ctrl-C ends it."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.client.api import Api
from app.client.command import Caller
from app.client.commands import follow
from app.client.config import Target
from app.client.failed import Code, Failed
from app.client.screen import Screen
from app.main import create_app
from app.models import Build
from tests.client.support import COMMAND, Said, Shell, environment, problem, scripted
from tests.client.test_pack import plant
from tests.support.platform import NAME
from tests.support.processes import Child, interrupt, spawned
from tests.support.sse import served
from tests.support.world import FILES, World


async def until_told(child: Child, build: str) -> list[str]:
    """Return the ids of the events that are printed up to the first of a build."""
    told = [json.loads(await asyncio.to_thread(child.line, "{"))]
    while told[-1]["build_id"] != build:
        told.append(json.loads(await asyncio.to_thread(child.line, "{")))
    return [event["id"] for event in told]


async def test_who_follows_a_server_that_starts_again_misses_nothing(here: World, tmp_path: Path) -> None:
    build = await here.submit()
    await here.jobs()
    builder = await here.builder(build)
    orders = await builder.claim()
    async with contextlib.AsyncExitStack() as stack:
        async with served(here.app, here.key) as api:
            env = environment(api.url, here.key, tmp_path)
            events = stack.enter_context(spawned(*COMMAND, "events", "-f", "--json", "--after", "0-0", env=env))
            logs = stack.enter_context(spawned(*COMMAND, "logs", "-f", build.id, "--json", env=env))
            ids = await until_told(events, build.id)
            await builder.log("one", "two")
            said = [json.loads(await asyncio.to_thread(logs.line, "{"))["text"] for _ in range(2)]
        await builder.log("three", seq=2)
        other = await here.submit()
        await stack.enter_async_context(served(create_app(here.context), here.key, urlsplit(api.url).port or 0))
        ids += await until_told(events, other.id)
        await builder.log("four", seq=3)
        await builder.complete(builder.success(await builder.push(), orders))
        await here.jobs()
        assert await asyncio.to_thread(logs.wait) == Code.OK, "a build's log ends with the build"
        assert await asyncio.to_thread(interrupt, events) == Code.INTERRUPTED, "the project's events have no end"
    everything = (await here.http.get("/v1/events", params={"limit": 200})).json()["items"]
    assert ids == [event["id"] for event in everything][: len(ids)]
    lines = [json.loads(line)["text"] for line in logs.output]
    assert lines == ["one", "two", "three", "four"]
    assert said == lines[:2], "at once"
    assert "Traceback" not in "".join(events.output)


@pytest.mark.parametrize("words", [(), ("--cancel-on-interrupt",)])
async def test_after_ctrl_c_the_build_goes_on_unless_it_was_said_otherwise(
    here: World, shell: Shell, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder, env = plant(tmp_path / "echo", FILES), environment(shell.url, here.key, tmp_path)
    with spawned(*COMMAND, "deploy", folder, "--platform", NAME, *words, env=env) as child:
        build = await asyncio.to_thread(child.line, "bld_")
        child.signal(signal.SIGINT)
        assert await asyncio.to_thread(child.wait) == Code.INTERRUPTED
    said = "".join(child.output)
    assert "Traceback" not in said
    assert (f"slipway logs -f {build}" in said) is not bool(words)
    assert (await here.one(Build)).status == ("canceled" if words else "queued")


def look(*lines: tuple[int, str]) -> Said:
    """Answer a look at a service's log: the second in which each line came, and the line."""
    items = [{"at": f"2026-01-02T03:04:{at:02}Z", "stream": "stdout", "text": text} for at, text in lines]
    return Said(200, json.dumps({"items": items}).encode())


def test_a_service_s_log_is_told_once_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    busy, gone = Said(503, b"{}", {"Retry-After": "9"}), problem(404, "service_not_found")
    dated = [
        look((1, "a"), (1, "b")),
        look((1, "a"), (1, "b"), (2, "b")),
        busy,
        look((1, "b"), (2, "b"), (3, "a"), (4, "a")),
    ]
    assert followed(*dated, gone, capsys=capsys) == (["a", "b", "b", "a", "a"], [1, 1, 9, 1])
    # Without times of its own a platform gives every line that of the last write; what is half written comes whole.
    undated = [look((1, "a"), (1, "b")), look((2, "a"), (2, "b"), (2, "c")), look((3, "b"), (3, "cd"), (3, "e"))]
    assert followed(*undated, gone, capsys=capsys) == (["a", "b", "c", "cd", "e"], [1, 1, 1])
    started_anew = [look((1, "a"), (1, "b")), look(), look((2, "a"))]
    assert followed(*started_anew, gone, capsys=capsys) == (["a", "b", "a"], [1, 1, 1])


def followed(*answers: Said, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[float]]:
    """Follow until the service is gone; returns what was printed, and the pauses."""
    pauses: list[float] = []
    caller = Caller(Screen(as_json=True))
    with scripted(*answers) as it:
        vars(caller)["api"] = Api(Target(it.url), sleep=pauses.append, clock=lambda: 0)
        with pytest.raises(Failed, match="service_not_found"):
            follow.logs(caller, "echo", follow=True)
        caller.close()
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()], pauses
