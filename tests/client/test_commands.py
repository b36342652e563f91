"""Every command against a real API over a socket; what the builder does is the test's."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from app.client.failed import Code
from app.models import Build, Release
from app.platforms.base import Rejected
from app.platforms.catalog import Entry
from tests.client.support import Shell, beside
from tests.client.test_pack import plant
from tests.support.builder import Builder
from tests.support.platform import NAME, TRAITS, Yard
from tests.support.waiting import eventually
from tests.support.world import FILES, World

ODD = "a line\u2028 of two \x1b[31mred\x1b[0m \x1b]0;title\x07parts"


async def builder_of(here: World, number: int) -> Builder:
    """Wait for the ``number``-th build and launch its builder."""

    async def sent() -> list[Build]:
        rows = await here.rows(Build)
        return rows if len(rows) == number else []

    (*_, build) = await eventually(sent)
    await here.jobs()
    return await here.builder(build)


async def test_from_a_folder_to_a_service_and_back(here: World, shell: Shell, tmp_path: Path) -> None:
    folder = plant(tmp_path / "Echo_", FILES | {".gitignore": "x.log\n", "x.log": "x"})
    secrets = plant(tmp_path / "secrets", {"s.env": "# mine\nONE='1 and more'\nexport TWO=2=3\n\n"}) / "s.env"
    shell.set["THREE"] = "three"
    words = ["--platform", NAME, "--env", "A=b=c", "--label", "team=x"]
    words += ["--secret-file", str(secrets), "--secret", "THREE"]
    words += ["--idle", "60", "--min", "0", "--memory", "128", "--port", "9000", "--health-path", "/up"]
    deploy = asyncio.create_task(shell("deploy", folder, *words))
    builder = await builder_of(here, 1)
    orders = await builder.claim()
    await builder.log("go: downloading", ODD)
    await builder.complete(builder.success(await builder.push(), orders))
    done = await beside(here, deploy)

    build = await here.one(Build)
    service = (await here.http.get("/v1/services/echo")).json()
    assert done.stdout == f"{service['url']}\n", "the address alone: the rest is for people"
    said = done.stderr
    places = [said.index(s) for s in (build.id, "waiting for a builder", "building", "going live", "echo is live on")]
    assert places == sorted(places)
    assert "a line\u2028 of two red parts\n" in said, "what others wrote does not steer the terminal"
    assert "three" not in said
    config, labels = service["live_release"]["config"], build.labels
    assert (config["env"], config["port"], config["health_path"], labels) == ({"A": "b=c"}, 9000, "/up", {"team": "x"})
    assert (config["memory_mb"], config["scale"]) == (128, {"min": 0, "idle_seconds": 60})
    assert here.unit(await here.live("echo")).spec.secrets == {"ONE": "1 and more", "TWO": "2=3", "THREE": "three"}
    (keys,) = await here.sql("select count(*) from idempotency_key")
    assert keys.count == 2, "the source and the build, each sent under a key"

    # It can be looked at, each way as people and as programs read it.
    assert (await shell.json("builds", "show", build.id))["release"]["number"] == 1
    shown = (await shell("builds", "show", build.id)).stdout
    assert "next move" not in shown
    assert re.search(r"seconds +queued=\d.*, total=\d.*\n.*labels +team=x", shown, re.DOTALL)
    assert "team=x" in (await shell("builds", "--label", "team=x")).stdout
    assert (await shell.json("builds", "--label", "team=y"))["items"] == []
    listed = (await shell("services")).stdout.splitlines()
    assert listed[0].split() == ["service", "status", "address", "platform", "release"]
    assert listed[1].split() == ["echo", "running", service["url"], NAME, "1"]
    assert (await shell("logs", build.id)).stdout == "go: downloading\na line\u2028 of two red parts\n"
    lines = [
        json.loads(line)["text"] for line in (await shell("logs", "-f", build.id, "--json")).stdout.split("\n")[:-1]
    ]
    assert lines == ["go: downloading", ODD]
    assert (await shell("logs", build.id, "--since", "2999-01-01")).stdout == ""
    kinds = [json.loads(e)["kind"] for e in (await shell("events", "--build", build.id, "--json")).stdout.splitlines()]
    assert kinds == await here.kinds(build_id=build.id)
    assert (await shell("events", "--kind", "build.succeeded")).stdout.count("\n") == 1

    # Again, and back to the first.
    retry = asyncio.create_task(shell("builds", "retry", build.id, "--json"))
    await (await builder_of(here, 2)).finish(layer=b"another")
    assert json.loads((await beside(here, retry)).stdout)["retry_of"] == build.id
    back = await beside(here, shell("rollback", "echo", "--to", "1"))
    assert back.stdout == f"{service['url']}\n"
    newest, *_ = (await shell.json("services", "releases", "echo"))["items"]
    assert (newest["number"], newest["kind"], newest["status"]) == (3, "rollback", "live")
    await shell("rollback", "echo", "--to", "9", code=Code.USAGE)
    assert "asleep" in (await beside(here, shell("services", "sleep", "echo"))).stdout
    assert "running" in (await beside(here, shell("services", "wake", "echo"))).stdout
    assert "--yes" in (await shell("services", "delete", "echo", code=Code.USAGE)).stderr
    await shell("services", "delete", "echo", "--yes")
    assert "service_not_found" in (await shell("services", "show", "echo", code=Code.REFUSED)).stderr
    odd = await shell("services", "show", "keys?x=1", code=Code.REFUSED)
    assert "There is no service 'keys?x=1'" in odd.stderr


async def test_a_failure_says_where_it_is_whose_move_it_is_and_what_to_do(
    here: World, shell: Shell, tmp_path: Path
) -> None:
    folder = plant(tmp_path / "broken", FILES)
    here.yard.preparing = "Compiling what all builds need, once."
    deploy = asyncio.create_task(shell("deploy", folder, "--platform", NAME, code=Code.CALLER))
    builder = await builder_of(here, 1)
    found = [{"file": "main.go", "line": 6, "column": 14, "message": "undefined: y"}]
    await builder.fail("compile_error", "It does not compile.", diagnostics=found)
    done = await beside(here, deploy)
    build = await here.one(Build)
    assert done.stdout == ""
    assert "Compiling what all builds need, once.\n" in done.stderr
    assert f"{folder}/main.go:6:14: undefined: y\n" in done.stderr
    assert f"{build.id} failed: compile_error" in done.stderr
    assert "The next move is yours." in done.stderr
    assert "builds retry" not in done.stderr

    retry = asyncio.create_task(shell("builds", "retry", build.id, code=Code.ELSEWHERE))
    await (await builder_of(here, 2)).fail("push_failed", "The registry is full.")
    said = (await beside(here, retry)).stderr
    assert "The registry is full." in said
    assert "The next move is the operator's." in said
    assert f"slipway builds retry {(await here.rows(Build))[1].id}" in said

    # What was not waited for goes on, and can be ended.
    sent = await shell("builds", "retry", build.id, "--no-wait")
    assert sent.stdout.strip() == (await here.rows(Build))[2].id
    assert "canceled" in (await shell("builds", "cancel", sent.stdout.strip())).stdout
    refused = await shell("builds", "cancel", build.id, "--json", code=Code.REFUSED)
    assert (refused.stdout, json.loads(refused.stderr)["reason"]) == ("", "build_ended")


async def test_a_release_that_fails_tells_whose_move_it_is(here: World, shell: Shell) -> None:
    await here.deployed("echo")
    await here.deployed("echo", env={"MORE": "1"})
    here.yard.misbehave("deploy", Rejected(NAME, "deploy", "no such size"))
    failed = await beside(here, shell("rollback", "echo", code=Code.CALLER))
    assert "platform_rejected" in failed.stderr
    assert (await here.rows(Release))[-1].status == "failed"


async def test_a_service_moves_to_another_platform(here: World, shell: Shell) -> None:
    await here.deployed("echo")
    traits = replace(TRAITS, scale_to_zero="automatic", min_idle_seconds=60, max_idle_seconds=600)
    barn = Yard(traits=traits, url="https://echo.barn.example")
    cast("dict[str, Entry]", here.context.catalog.entries)["barn"] = barn.entry("barn")
    here.context.catalog.held["barn"] = barn.platform("barn")
    try:
        old = (await here.service("echo")).url
        moved = await beside(here, shell("migrate", "echo", "--to", "barn", "--keep", "500"))
        assert moved.stdout == f"{barn.url}\n"
        assert f"the address will change; for 500 s {old} stays\n" in moved.stderr
        assert "release 2 of echo is live on barn\n" in moved.stderr
        assert len(barn.units) == 1
        assert "already_there" in (await shell("migrate", "echo", "--to", "barn", code=Code.REFUSED)).stderr
    finally:
        await barn.close()


async def test_what_a_failed_test_leaves_under_way_is_ended(here: World, shell: Shell, tmp_path: Path) -> None:
    deploy = asyncio.create_task(shell("deploy", plant(tmp_path / "echo", FILES), "--platform", NAME, code=Code.CALLER))
    await (await builder_of(here, 1)).claim()
    await shell.leave(here)
    assert "canceled" in (await deploy).stderr


async def test_keys_projects_webhooks_and_platforms(here: World, shell: Shell) -> None:
    made = await shell("keys", "create", "ci", "--scope", "builds:read", "--expires", "30d")
    assert made.stdout.startswith("slp_")
    reader = Shell(shell.url, made.stdout.strip(), shell.home)
    await reader("builds")
    refused = await reader("services", code=Code.REFUSED)
    assert "insufficient_scope" in refused.stderr
    assert "--scope" in refused.stderr, "what to do"
    (ci,) = [k for k in (await shell.json("keys"))["items"] if k["name"] == "ci"]
    left = datetime.fromisoformat(ci["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left < timedelta(days=30)
    fresh = await shell.json("keys", "rotate", ci["id"], "--overlap", "0")
    await reader("builds", code=Code.REFUSED)
    await shell("keys", "revoke", fresh["id"])
    assert "revoked" in (await shell("keys", "--ended")).stdout

    await shell("projects", "create", "acme", "--max-builds", "3", "--max-services", "9")
    assert "3" in (await shell("projects", "show", "acme")).stdout
    limits = await shell.json("projects", "set", "acme", "--max-builds", "default", "--max-queued", "5")
    assert [limits[f"max_{n}"] for n in ("concurrent_builds", "queued_builds", "services")] == [None, 5, 9]
    assert "--max-queued" in (await shell("projects", "set", "acme", "--max-queued", "few", code=Code.USAGE)).stderr
    assert [p["name"] for p in (await shell.json("projects"))["items"]] == ["acme", "default"]
    assert (await shell("keys", "create", "first", "--project", "acme")).stdout.startswith("slp_")

    (platform,) = (await shell.json("platforms"))["items"]
    assert platform["name"] == NAME
    assert NAME in (await shell("platforms")).stdout
    hook = await shell.json("webhooks", "create", "https://1.1.1.1/hook", "--event", "build.*")
    assert hook["secret"].startswith("whsec_")
    assert "disabled" in (await shell("webhooks", "update", hook["id"], "--disable")).stdout
    await shell("webhooks", "update", hook["id"], "--enable")
    assert (await shell("webhooks", "rotate", hook["id"])).stdout.startswith("whsec_")
    sent = await shell.json("webhooks", "test", hook["id"])
    assert sent["id"] in (await shell("webhooks", "deliveries", hook["id"])).stdout
    assert sent["id"] in (await shell("webhooks", "redeliver", hook["id"], sent["id"])).stdout
    await shell("webhooks", "delete", hook["id"])
    assert (await shell.json("webhooks"))["items"] == []


async def test_login_keeps_what_the_commands_to_come_need(here: World, shell: Shell) -> None:
    key, shell.key = shell.key, ""
    assert "slipway login" in (await shell("builds", code=Code.REFUSED)).stderr
    assert "no key" in (await shell("login", stdin="\n", code=Code.USAGE)).stderr
    assert "unauthorized" in (await shell("login", stdin="slp_wrong\n", code=Code.REFUSED)).stderr
    await shell("login", stdin=f"{key}\n")
    assert key not in (await shell("builds")).output
    shell.url, url = "", shell.url
    await shell("builds")
    await shell("logout")
    shell.url = url
    await shell("builds", code=Code.REFUSED)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "/nowhere"], "is no folder"),
        (["deploy", "/"], "named after /"),
        (["deploy", "--env", "A"], "--env takes NAME=VALUE"),
        (["deploy", "--env", "A=1", "--env", "A=2"], "given twice"),
        (["deploy", "--secret", "NO_SUCH"], "there is no such variable"),
        (["deploy", "--secret-file", "/nowhere"], "can't be read"),
        (["logs", "bld_x", "--since", "later"], "is no time"),
        (["keys", "create", "--expires", "tomorrow"], "--expires 'tomorrow' is no time"),
        (["migrate", "echo"], "--to PLATFORM"),
        (["keys", "create", "--direct", "--expires", "2999-01-01"], "until it is revoked"),
        (["keys", "create", "--direct", "--scope", "all"], "there is no 'all'"),
        (["builds", "--url", "example.com"], "no address"),
        (["builds", "nothing"], "No such command"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_sent(words: list[str], said: str, tmp_path: Path) -> None:
    done = Shell("http://127.0.0.1:1", "slp_x", tmp_path).run(*words)
    assert (done.exit_code, said in done.stderr) == (Code.USAGE, True), done.output
