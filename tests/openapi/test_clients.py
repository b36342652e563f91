"""Clients that others' generators make of the description, used as ``docs/clients.md`` shows, against a real server."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.imitations.server import serving
from tests.openapi.committed import FILE
from tests.support import node
from tests.support.builder import Builder
from tests.support.platform import NAME
from tests.support.processes import REPOSITORY
from tests.support.waiting import eventually
from tests.support.world import World

PAGE = (REPOSITORY / "docs/clients.md").read_text()
SECONDS = 60


def block(language: str) -> str:
    """Return the page's one block in a language."""
    (found,) = [b.partition("```")[0] for b in PAGE.split(f"```{language}\n")[1:]]
    return found


def run(folder: Path, *command: str | Path, **env: str) -> str:
    """Run a program; returns what it printed, AssertionError when it failed."""
    done = subprocess.run(
        [*command], check=False, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def used(here: World, language: str, program: Callable[[dict[str, str]], str]) -> None:
    """Run the page's program, and meanwhile take its build through; check what it saw."""
    for _ in range(2):  # so that its list has more than one page
        await here.send(here.order() | {"labels": {"from": language}})
    async with serving(here.app) as url:
        env = {"SLIPWAY_URL": url, "SLIPWAY_API_KEY": here.key, "PLATFORM": NAME}
        client = asyncio.create_task(asyncio.to_thread(program, env))

        async def sent() -> str | None:
            assert not client.done(), await client
            items = (await here.http.get("/v1/builds", params={"label": f"from={language}"})).json()["items"]
            return str(items[0]["id"]) if len(items) == 3 else None

        build_id = await eventually(sent, SECONDS, every=0.05)
        await here.jobs()
        run_id, name = (await here.sql("select id, name from run where build_id = :id", id=build_id))[0]
        token = here.yard.machines[name].spec.env["SLIPWAY_RUN_TOKEN"]
        await Builder(here.http, run_id, token).finish()
        await here.jobs()
        lines = (await client).splitlines()
    events = [line for line in lines if line.startswith("event ")]
    assert events[0] == "event build.queued"
    assert "event build.succeeded" in events
    assert lines[len(events) :] == [
        "ended succeeded", "build succeeded", "build building", "build building", "missing There is no service 'nobody'.",
    ]  # fmt: skip


async def test_a_typescript_client(here: World, run_folder: Path) -> None:
    folder = await asyncio.to_thread(node.install, run_folder)
    modules = "node_modules"
    generated = ["--default-non-nullable=false", "--output", "slipway.d.ts"]
    assert f"openapi-typescript openapi.json {' '.join(generated)}" in PAGE
    node.run(folder, f"{modules}/openapi-typescript/bin/cli.js", str(FILE), *generated)
    (folder / "follow.ts").write_text(block("ts"))
    node.run(folder, f"{modules}/typescript/bin/tsc", "--project", ".")
    await used(here, "typescript", lambda env: run(folder, node.BIN / "node", "follow.ts", **env))


async def test_a_python_client(here: World, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(FILE.read_text())
    (tmp_path / "client.yaml").write_text(block("yaml"))
    (tmp_path / "follow.py").write_text(block("python"))
    (command,) = [line for line in PAGE.splitlines() if line.startswith("openapi-python-client generate")]
    told = run(tmp_path, Path(sys.executable).parent / command.split()[0], *command.split()[1:])
    assert "WARNING" not in told
    types = ("--strict", "--follow-imports=silent", "--config-file=", "--cache-dir", os.devnull)
    run(tmp_path, sys.executable, "-m", "mypy", *types, "follow.py")
    await used(here, "python", lambda env: run(tmp_path, sys.executable, "follow.py", **env))
